"""Children cannot be left behind, their output is bounded, and how they ended is told in words."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from sheaf.local import shim
from sheaf.local.process import Command, Exit, Process

PYTHON = (sys.executable, "-I", "-S", "-c")


async def start(tmp_path: Path, code: str, log: Path | None = None) -> Process:
    process = await Process.start(Command((*PYTHON, code), log or tmp_path / "child.log"))
    await process.pid()
    return process


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def gone(pid: int) -> bool:
    for _ in range(150):
        if not alive(pid):
            return True
        await asyncio.sleep(0.01)
    return False


def content(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


async def number_in(path: Path) -> int:
    for _ in range(150):
        if text := content(path):
            return int(text)
        await asyncio.sleep(0.01)
    raise AssertionError(f"nothing in {path}")


async def test_the_exit_tells_code_and_last_words(tmp_path: Path) -> None:
    process = await start(tmp_path, "print('one'); print('two'); raise SystemExit(3)")
    ended = await process.wait()
    assert (ended.code, ended.lines) == (3, ("one", "two"))
    assert str(ended) == "exited with code 3: two"
    assert (tmp_path / "child.log").read_text() == "one\ntwo\n"
    assert not process.running


async def test_a_program_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    process = await Process.start(Command(("/no/such/program",), tmp_path / "log"))
    assert str(await process.wait()) == "exited with code 127: /no/such/program: No such file or directory"


async def test_a_gentle_end_is_given_first(tmp_path: Path) -> None:
    code = "import signal,sys,time\nsignal.signal(15, lambda *_: sys.exit('drained'))\nprint(1, flush=True)\ntime.sleep(60)"
    process = await start(tmp_path, code)
    await number_in(tmp_path / "child.log")
    ended = await process.stop(grace=5.0)
    assert (ended.code, ended.lines[-1]) == (1, "drained")


async def test_who_does_not_listen_is_killed_with_everything_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "grandchild"
    code = (
        "import os,signal,time\nsignal.signal(15, signal.SIG_IGN)\n"
        f"pid = os.fork()\nif not pid:\n os.setsid(); time.sleep(60)\nopen({str(mark)!r}, 'w').write(str(pid))\ntime.sleep(60)"
    )
    process = await start(tmp_path, code)
    grandchild = await number_in(mark)
    assert (await process.stop(grace=0.1)).code == -signal.SIGKILL
    assert await gone(grandchild)


async def test_orphans_of_a_child_that_died_are_ended(tmp_path: Path) -> None:
    mark = tmp_path / "orphan"
    code = f"import os,time\npid = os.fork()\nif not pid:\n os.setsid(); time.sleep(60)\nopen({str(mark)!r}, 'w').write(str(pid))"
    process = await start(tmp_path, code)
    orphan = await number_in(mark)
    process.kill()
    await process.wait()
    assert await gone(orphan)


async def test_the_child_dies_with_its_shim(tmp_path: Path) -> None:
    process = await start(tmp_path, "import time; time.sleep(60)")
    child = await process.pid()
    os.kill(process._shim.pid, signal.SIGKILL)
    assert (await process.wait()).code == -signal.SIGKILL
    assert await gone(child)


async def test_a_full_disk_loses_lines_of_the_log_and_nothing_else(tmp_path: Path) -> None:
    process = await start(tmp_path, "print('hello')", Path("/dev/full"))
    ended = await process.wait()
    assert (ended.code, ended.lines) == (0, ("hello",))
    assert process.log_error == "No space left on device"


def test_a_log_grows_no_further_than_twice_its_limit(tmp_path: Path) -> None:
    log = shim.Log(str(tmp_path / "log"), limit=100)
    for number in range(50):
        log.write(b"%03d 0123456789\n" % number)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 200
    assert (tmp_path / "log").read_bytes().endswith(b"049 0123456789\n")
    assert log.last_lines()[-1] == "049 0123456789"


def test_a_log_is_never_written_through_a_link(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    shim.Log(str(tmp_path / "log"), limit=100).write(b"secret\n")
    assert not (tmp_path / "elsewhere").exists()
    assert "log_error" in capfd.readouterr().out


def test_endings_are_put_into_words() -> None:
    assert str(Exit(-signal.SIGKILL, ("x",))) == "was killed by SIGKILL (out of memory, or killed by hand)"
    assert str(Exit(-signal.SIGABRT, ("x",))) == "was killed by SIGABRT: x"
    assert str(Exit(-signal.SIGSEGV)) == "was killed by SIGSEGV"
    assert str(Exit(-99)) == "was killed by signal 99"


def test_the_most_telling_line_is_quoted() -> None:
    lines = (
        "(EngineCore pid=7) ERROR [core.py:1] ValueError: no room for the KV cache",
        "Traceback (most recent call last):",
        "RuntimeError: Engine core initialization failed. See root cause above.",
        "goodbye",
    )
    assert str(Exit(1, lines)) == "exited with code 1: ValueError: no room for the KV cache"
    assert str(Exit(2, ("usage: x", "x: error: unrecognized arguments"))).endswith("x: error: unrecognized arguments")


def test_what_a_child_says_cannot_steer_the_terminal() -> None:
    assert str(Exit(1, ("\x1b[31mred\x1b[0m\x07 \x9b2J",))) == "exited with code 1: red 2J"
    assert len(str(Exit(1, ("x" * 5000,)))) < 640


async def test_stopping_what_has_ended_is_no_error(tmp_path: Path) -> None:
    process = await start(tmp_path, "pass")
    await process.wait()
    assert (await asyncio.wait_for(process.stop(grace=60.0), 5.0)).code == 0
