"""Child processes that cannot be left behind: each runs under a shim (see shim.py) that ends all it started."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sheaf_operator.planning.manifest.troubles import last_words

LOG_LIMIT = 16 * 2**20
SHIM = Path(__file__).with_name("shim.py")
UNHEARD = 5.0


@dataclass(frozen=True, slots=True)
class Command:
    """What to run: arguments, further environment variables, and the file that takes its output."""

    argv: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: its code (negative: the signal), and its last lines of output."""

    code: int
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for people: how it ended, and the most telling line of its output where it ended by itself."""
        by_hand = self.code in (-signal.SIGKILL, -signal.SIGTERM)
        last = "" if by_hand else last_words("\n".join(self.lines))
        return f"{self.how}: {last}" if last else self.how

    @property
    def how(self) -> str:
        """How it ended, in words."""
        if self.code >= 0:
            return f"exited with code {self.code}"
        name = signal.Signals(-self.code).name if -self.code in signal.valid_signals() else f"signal {-self.code}"
        hint = " (out of memory, or killed by hand)" if self.code == -signal.SIGKILL else ""
        return f"was killed by {name}{hint}"


class Process:
    """A running child. Always wait for it or stop it."""

    def __init__(self, shim: asyncio.subprocess.Process) -> None:
        self._shim = shim
        self._started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exit = Exit(-signal.SIGKILL)
        self.log_error = ""
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, command: Command) -> "Process":
        """Start the command; that it cannot be executed shows as an exit with code 127."""
        shim = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", str(SHIM)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", **command.env},
            start_new_session=True,
            limit=2**20,
        )
        process = cls(shim)
        spec = {"argv": list(command.argv), "log": str(command.log), "log_limit": LOG_LIMIT}
        await process._tell(json.dumps(spec))
        return process

    async def pid(self) -> int:
        """Process id of the child."""
        return await asyncio.shield(self._started)

    @property
    def running(self) -> bool:
        """Whether it, or anything that it started, is still there."""
        return not self._reader.done()

    async def wait(self) -> Exit:
        """How it ended, as soon as it and all that it started have."""
        await asyncio.shield(self._reader)
        return self._exit

    async def stop(self, grace: float) -> Exit:
        """SIGTERM, and SIGKILL to everything left after the grace (seconds)."""
        await self._tell(f"stop {grace}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace + UNHEARD):
                return await self.wait()
        self.kill()
        return await self.wait()

    def kill(self) -> None:
        """End everything at once."""
        if self._shim.stdin is not None:
            self._shim.stdin.close()

    async def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):
            if self._shim.stdin is not None and not self._shim.stdin.is_closing():
                self._shim.stdin.write(line.encode() + b"\n")
                await self._shim.stdin.drain()

    async def _read(self) -> None:
        output = self._shim.stdout
        while output is not None and (line := await output.readline()):
            self._take(json.loads(line))
        await self._shim.wait()
        if not self._started.done():
            self._started.set_result(0)
        self.kill()

    def _take(self, event: Mapping[str, object]) -> None:
        match event:
            case {"event": "started", "pid": int(pid)}:
                self._started.set_result(pid)
            case {"event": "exited", "code": int(code), "lines": list(lines)}:
                self._exit = Exit(code, tuple(str(line) for line in lines))
            case {"event": "log_error", "error": str(error)}:
                self.log_error = error
            case _:
                pass
