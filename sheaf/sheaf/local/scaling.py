"""Autoscaling in `sheaf up`: the operator's loop, asking the one gateway on this machine."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from sheaf_operator.cluster.gateways import GatewayError, Gateways
from sheaf_operator.handlers.autoscaling import Autoscaling
from sheaf_operator.handlers.reconcile import always
from sheaf_operator.planning.autoscaling.speeds import speed_of

from sheaf.local.cluster import LocalCluster
from sheaf.local.layout import Layout

TIMEOUT = 5.0
COLD_START_S = 20.0


def autoscaling(cluster: LocalCluster, layout: Layout, url: str, clock: Callable[[], float] = time.time) -> Autoscaling:
    """The loop for a local cluster whose gateway listens at `url`."""

    async def find() -> Mapping[str, str]:
        return {"gateway": url}

    async def fetch(address: str) -> Any:
        return await _fetch(address, layout)

    return Autoscaling(
        cluster.index,
        Gateways(find, fetch, clock),
        lambda model: speed_of(model, {}),
        clock,
        asyncio.get_running_loop().time,
        always,
        cluster.mark,
        COLD_START_S,
    )


async def _fetch(address: str, layout: Layout) -> Any:
    try:
        token = layout.token_file.read_text().strip()
        async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as client:
            answer = await client.get(address, headers={"authorization": f"Bearer {token}"})
        if answer.status_code != 200:
            raise GatewayError(f"{address} answered {answer.status_code}")
        return answer.json()
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise GatewayError(f"{address} does not answer: {type(error).__name__}") from error
