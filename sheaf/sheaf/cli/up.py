"""`sheaf up`: serve manifests on this machine until Ctrl-C."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer

from sheaf.cli.errors import CliError
from sheaf.cli.view import View
from sheaf.local.gateway import GatewayError
from sheaf.local.journal import Event, Journal
from sheaf.local.layout import LayoutError, default_state_dir
from sheaf.local.manifests import NoManifestsError
from sheaf.local.options import Options
from sheaf.local.ports import PortInUseError
from sheaf.local.up import LocalSheaf

EXPECTED = (NoManifestsError, PortInUseError, LayoutError, GatewayError)
SHOW_CURSOR = "\x1b[?25h"


def up(
    paths: Annotated[list[Path], typer.Argument(help="Manifest files, or folders of them; edit them while it runs.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT of the endpoint.")] = "127.0.0.1:8000",
    state_dir: Annotated[Path | None, typer.Option(help="Logs and state [default: ~/.local/state/sheaf/PORT].")] = None,
    keys: Annotated[
        Path | None, typer.Option(help="File of API keys (`sheaf keys new`); none: no key is asked.")
    ] = None,
    view: Annotated[bool, typer.Option("--view/--no-view", help="Live view, where the output is a terminal.")] = True,
) -> None:
    """Serve the models and adapters of the manifests on this machine, without a cluster."""
    host, port = address(listen)
    if keys is not None and not keys.is_file():
        raise CliError(f"{keys}: no such file; `sheaf keys new --tenant NAME` makes an entry for one")
    options = Options(paths, host, port, state_dir or default_state_dir(port), keys and keys.absolute())
    _quiet_logs()
    try:
        asyncio.run(_up(options, live=view and sys.stdout.isatty()))
    except EXPECTED as error:
        raise CliError(str(error)) from error


def address(listen: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, :PORT or PORT."""
    host, _, port = listen.rpartition(":")
    if not port.isdigit() or not 1 <= int(port) <= 65535:
        raise CliError(f"--listen is {listen!r}; write HOST:PORT, such as 127.0.0.1:8000", 2)
    return host.strip("[]") or "127.0.0.1", int(port)


async def _up(options: Options, *, live: bool) -> None:
    journal = Journal()
    sheaf = LocalSheaf(options, journal, lambda: _announce(f"ready {options.url}"))
    _stop_on_signals(sheaf)
    if not live:
        journal.sink = _print_event
        await sheaf.run()
        return
    view = View(sheaf)
    drawing = asyncio.create_task(view.run())
    try:
        await sheaf.run()
    finally:
        drawing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await drawing


def _announce(line: str) -> None:
    with contextlib.suppress(OSError):
        print(line, flush=True)


def _print_event(event: Event) -> None:
    with contextlib.suppress(OSError):
        print(event, file=sys.stderr, flush=True)


def _stop_on_signals(sheaf: LocalSheaf) -> None:
    """The first signal stops cleanly; the second ends this process, and with it, at once, everything it started."""
    told = False

    def stop() -> None:
        nonlocal told
        if told:
            with contextlib.suppress(OSError):
                os.write(2, f"{SHOW_CURSOR}stopped at once\n".encode() if sys.stderr.isatty() else b"stopped at once\n")
            os._exit(130)
        told = True
        sheaf.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)


def _quiet_logs() -> None:
    """The journal speaks to people; the operator's own lines are for clusters, and here only its warnings are kept."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(40),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
