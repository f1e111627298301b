"""`python -m sheaf_operator --config FILE [--namespace NS] [--kubeconfig FILE]`: operate one namespace.

A container's first process is not ended by a signal that it does not handle, so SIGTERM is handled before anything else
is imported.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

import argparse
import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import structlog

from sheaf_operator.cluster.kubernetes.access import AccessError
from sheaf_operator.config import ConfigError, OperatorConfig, read_config
from sheaf_operator.handlers import logs
from sheaf_operator.handlers.process import Operator
from sheaf_operator.handlers.surface import ListenError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m sheaf_operator", description="Operate one namespace.")
    made.add_argument("--config", type=Path, required=True, help="configuration file (JSON or YAML)")
    made.add_argument("--namespace", help="namespace to operate; default: the configuration's, then the pod's own")
    made.add_argument("--kubeconfig", help="how to reach the API server; default: KUBECONFIG or the pod's account")
    made.add_argument("--log-level", choices=LEVELS, default="INFO", help="least severe lines to log")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM; 0, or 1 after one line that says what is wrong."""
    options = parser().parse_args(arguments)
    logs.set_up(options.log_level)
    try:
        config = read_config(options.config)
        if options.namespace:
            config = config.model_copy(update={"namespace": options.namespace})
        _run(_operate(config, options.kubeconfig))
    except (ConfigError, AccessError, ListenError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the one line for whoever started it
        return 1
    except Exception:  # noqa: BLE001 - a line in the log, not a trace in the terminal
        structlog.get_logger("sheaf.operator").exception("ended by a surprise")
        return 1
    return 0


async def _operate(config: OperatorConfig, kubeconfig: str | None) -> None:
    await Operator(config, kubeconfig).run()


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop  # noqa: PLC0415 - faster where it is installed
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


if __name__ == "__main__":
    sys.exit(main())
