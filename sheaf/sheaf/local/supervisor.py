"""Keeps one process running: probes it, starts it again when it ends, waits longer each time that it ends young."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from sheaf.local.process import Command, Exit, Process

FIRST_DELAY = 1.0
LONGEST_DELAY = 60.0
GROWN_UP = 30.0
PROBE_INTERVAL = 0.25
LIVE_INTERVAL = 5.0
HANG = 60.0


def restart_delay(crashes: int) -> float:
    """Seconds before the next start after so many crashes in a row: none, then 1, 2, 4 … 60."""
    return 0.0 if crashes <= 1 else min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(crashes - 2, 10))


@dataclass(frozen=True, slots=True)
class Task:
    """What to keep running.

    `command` is asked anew for every start. `probe` says whether it serves; a process that never served within
    `startup_timeout` seconds, or stopped answering for a minute, is ended and counts as crashed.
    """

    name: str
    command: Callable[[], Command]
    probe: Callable[[], Awaitable[bool]]
    startup_timeout: float
    grace: float = 10.0


class Supervisor:
    """One process and its fate. `changed` is called whenever something that it shows has changed."""

    def __init__(self, task: Task, changed: Callable[[], None]) -> None:
        self.task, self._changed = task, changed
        self.process: Process | None = None
        self.healthy = False
        self.restarts = 0
        self.crashes = 0
        self.trouble = ""
        self._verdict = ""
        self._log: Path | str = "none"
        self._healthy_since = 0.0

    @property
    def reason(self) -> str:
        """A word for what is wrong; empty where nothing is."""
        if not self.trouble:
            return ""
        return "CrashLoopBackOff" if self.crashes > 1 else f"{self.task.name.capitalize()}Restarting"

    @property
    def log_error(self) -> str:
        """Why lines of its log were lost; empty where none were."""
        return self.process.log_error if self.process is not None else ""

    async def run(self) -> None:
        """Keep it running until cancelled; then it is stopped."""
        while True:
            ended = await self._life()
            self._bury(ended)
            await asyncio.sleep(restart_delay(self.crashes))
            self.restarts += 1

    async def _life(self) -> Exit:
        self._verdict = ""
        try:
            command = self.task.command()
            self._log = command.log
            process = self.process = await Process.start(command)
        except OSError as error:
            return Exit(127, (f"cannot be started: {error.strerror}",))
        watch = asyncio.create_task(self._watch(process))
        try:
            return await process.wait()
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
            await self._end(process)

    async def _end(self, process: Process) -> None:
        self._set_healthy(healthy=False)
        if process.running:
            await process.stop(self.task.grace)

    def _bury(self, ended: Exit) -> None:
        grown_up = self._healthy_since and time.monotonic() - self._healthy_since >= GROWN_UP
        self.crashes = 1 if grown_up else self.crashes + 1
        self._healthy_since = 0.0
        self.trouble = f"{self.task.name} {self._verdict or ended} (log: {self._log})"
        self._changed()

    async def _watch(self, process: Process) -> None:
        """Probe until told otherwise; end a process that does not come up or hangs."""
        last_good = started = time.monotonic()
        complained = False
        while True:
            if process.log_error and not complained:
                complained = True
                self._changed()
            patience = HANG if self.healthy else self.task.startup_timeout
            if await self.task.probe():
                last_good = time.monotonic()
                self._set_healthy(healthy=True)
            elif time.monotonic() - (last_good if self.healthy else started) > patience:
                self._verdict = f"did not answer its health probe for {patience:.0f} s"
                await process.stop(self.task.grace)
                return
            await asyncio.sleep(LIVE_INTERVAL if self.healthy else PROBE_INTERVAL)

    def _set_healthy(self, *, healthy: bool) -> None:
        if healthy == self.healthy:
            return
        self.healthy = healthy
        if healthy:
            self._healthy_since = time.monotonic()
            self.trouble = ""
        self._changed()
