"""`python -m sheaf_gateway --config FILE`: serve until SIGTERM or SIGINT; exit 1 with one line where that is
impossible.

With `workers` this process only looks after those that serve; the gateway itself is imported where it runs."""

import argparse
import asyncio
import gc
import importlib
import logging
import sys
from pathlib import Path
from typing import Any

import orjson
import structlog
import uvloop

from sheaf_gateway.config import ConfigError, GatewayConfig, load_config
from sheaf_gateway.logs import unwaited_stderr
from sheaf_gateway.workers.place import read_place
from sheaf_gateway.workers.supervisor import supervise

_GC = (50_000, 20, 50)


def main(arguments: list[str] | None = None) -> int:
    """Run the gateway; the exit status."""
    flags = vars(_parser().parse_args(arguments))
    try:
        place, path = flags.pop("place"), flags.pop("config")
        config = load_config(path, flags)
        with unwaited_stderr():
            _log_json()
            if config.workers > 1 and place is None:
                return asyncio.run(supervise(lambda: load_config(path, flags)))
            _serve(config, place)
    except ConfigError as error:
        sys.stderr.write(f"sheaf-gateway: {error}\n")
        return 1
    return 0


def _serve(config: GatewayConfig, place: str | None) -> None:
    run_until_signal = importlib.import_module("sheaf_gateway.main").run_until_signal
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_until_signal(config, None if place is None else read_place(place)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sheaf_gateway", description="Serve a fleet behind one endpoint.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="JSON configuration; see docs/gateway.md")
    parser.add_argument("--listen", metavar="HOST:PORT", help="address to listen on")
    parser.add_argument("--fleet-file", metavar="FILE", help="the fleet snapshot, followed when it changes")
    parser.add_argument(
        "--namespace", metavar="NAME", help="read the fleet from this namespace of a Kubernetes cluster"
    )
    parser.add_argument(
        "--kubeconfig", metavar="FILE", help="the cluster's kubeconfig; without it the pod's own cluster"
    )
    parser.add_argument("--agent-token-file", metavar="FILE", help="the token of the agents' API")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that serve together on the port")
    parser.add_argument("--place", help=argparse.SUPPRESS)
    parser.add_argument("--keys-file", metavar="FILE", help="API keys; without it everyone may ask")
    return parser


def _log_json() -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(serializer=_dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
    )


def _dumps(event: dict[str, Any], **_options: object) -> bytes:
    return orjson.dumps(event, default=repr)


if __name__ == "__main__":
    sys.exit(main())
