"""The process before it serves: SIGTERM ends it cleanly from the first moment, also where it is a container's first."""

import asyncio
import signal
import sys
from pathlib import Path

TERM = 1 << (signal.SIGTERM - 1)


def handles_sigterm(pid: int) -> bool:
    """Whether the process has a handler for it; without one, nothing ends a container's first process but SIGKILL."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) & TERM)


async def test_sigterm_during_the_start_ends_it_with_0_and_without_a_word(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sheaf_operator", "--config", str(tmp_path / "none.json"), stderr=asyncio.subprocess.PIPE
    )
    while not handles_sigterm(process.pid):  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, said = await process.communicate()
    assert (process.returncode, said) == (0, b"")
