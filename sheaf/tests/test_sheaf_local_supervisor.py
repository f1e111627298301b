"""A supervised process comes back at once, then ever more slowly, and says what was wrong with it."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sheaf.local.process import Command
from sheaf.local.supervisor import Supervisor, Task, restart_delay
from sheaf.local.watch import ManifestWatch

PYTHON = (sys.executable, "-I", "-S", "-c")


@asynccontextmanager
async def supervised(
    tmp_path: Path, code: str, *, healthy: bool = False, startup: float = 60.0
) -> AsyncIterator[Supervisor]:
    async def probe() -> bool:
        return healthy

    task = Task("engine", lambda: Command((*PYTHON, code), tmp_path / "e.log"), probe, startup, grace=0.5)
    supervisor = Supervisor(task, lambda: None)
    running = asyncio.create_task(supervisor.run())
    try:
        yield supervisor
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def until(holds) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never held")


def test_the_wait_between_starts_grows_and_is_bounded() -> None:
    assert [restart_delay(crashes) for crashes in range(9)] == [0, 0, 1, 2, 4, 8, 16, 32, 60]
    assert restart_delay(10_000) == 60


async def test_a_crash_is_told_with_its_last_words_and_the_second_start_comes_at_once(tmp_path: Path) -> None:
    async with supervised(tmp_path, "raise SystemExit('no memory')") as supervisor:
        await until(lambda: supervisor.crashes == 1)
        assert supervisor.trouble == f"engine exited with code 1: no memory (log: {tmp_path / 'e.log'})"
        assert supervisor.reason == "EngineRestarting"
        await until(lambda: supervisor.restarts == 1)
        await until(lambda: supervisor.crashes == 2)
        assert supervisor.reason == "CrashLoopBackOff"


async def test_health_clears_the_trouble(tmp_path: Path) -> None:
    async with supervised(tmp_path, "import time; time.sleep(60)", healthy=True) as supervisor:
        supervisor.trouble = "engine was killed"
        await until(lambda: supervisor.healthy)
        assert (supervisor.trouble, supervisor.reason) == ("", "")
    assert not supervisor.healthy
    assert supervisor.process is not None
    assert not supervisor.process.running


async def test_a_process_that_does_not_come_up_in_time_is_ended(tmp_path: Path) -> None:
    async with supervised(tmp_path, "import time; time.sleep(60)", startup=0.1) as supervisor:
        await until(lambda: supervisor.crashes == 1)
        assert "did not answer its health probe for 0 s" in supervisor.trouble


async def test_a_log_that_cannot_be_opened_is_no_reason_not_to_run(tmp_path: Path) -> None:
    async with supervised(tmp_path / "missing", "import time; time.sleep(60)", healthy=True) as supervisor:
        await until(lambda: supervisor.healthy)


async def test_an_edit_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    folder, alone = tmp_path / "folder", tmp_path / "alone.yaml"
    folder.mkdir()
    alone.write_text("a: 1")
    watch = ManifestWatch([folder, alone])
    for edit in (lambda: (folder / "new.yaml").write_text("b: 1"), lambda: alone.write_text("a: 22"), alone.unlink):
        noticed = asyncio.create_task(watch.changed())
        await asyncio.sleep(0.05)
        assert not noticed.done()
        edit()
        await noticed


async def test_a_watch_that_is_cancelled_while_files_stir_ends(tmp_path: Path) -> None:
    watch = ManifestWatch([tmp_path])
    watching = asyncio.create_task(watch.changed())
    await asyncio.sleep(0.05)
    watch._stirred.set()
    watching.cancel()
    done, _ = await asyncio.wait([watching], timeout=0.5)
    watching.cancel()
    assert done == {watching}
    assert watching.cancelled()
