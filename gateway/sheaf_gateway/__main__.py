"""`python -m sheaf_gateway --config FILE`: serve until SIGTERM or SIGINT; exit 1 with one line where that is
impossible."""

import argparse
import asyncio
import gc
import logging
import sys
from pathlib import Path
from typing import Any

import orjson
import structlog
import uvloop

from sheaf_gateway.config import ConfigError, load_config
from sheaf_gateway.main import run_until_signal

_GC = (50_000, 20, 50)


def main(arguments: list[str] | None = None) -> int:
    """Run the gateway; the exit status."""
    flags = vars(_parser().parse_args(arguments))
    try:
        config = load_config(flags.pop("config"), flags)
        _log_json()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_until_signal(config))
    except ConfigError as error:
        sys.stderr.write(f"sheaf-gateway: {error}\n")
        return 1
    return 0


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
