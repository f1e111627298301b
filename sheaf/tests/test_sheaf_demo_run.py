"""`make demo` from start to end, with a stand-in for the engines: right answers end with 0, everything else with a reason."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sheaf.demo import run as demo_run
from sheaf.demo import serving
from sheaf.demo.assets import DemoAssets
from sheaf.demo.recipe import DemoError
from sheaf.demo.run import run
from sheaf.demo.serving import Serving, serve

PROGRAM = Path(__file__).with_name("demo_endpoint.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def assets(cache: Path, progress: object) -> DemoAssets:
        progress("train pirate", 0.5)  # type: ignore[operator]
        progress("train pirate", 1.0)  # type: ignore[operator]
        return DemoAssets(cache, cache, {}, cache)

    monkeypatch.setattr(demo_run, "prepare", assets)
    monkeypatch.setattr(serving, "POLL", 0.01)
    monkeypatch.setattr(demo_run, "POLL", 0.01)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def stand_in(monkeypatch: pytest.MonkeyPatch, mode: str) -> str:
    monkeypatch.setattr(serving, "SHEAF_UP", (sys.executable, "-S", str(PROGRAM), mode, "up"))
    return f"127.0.0.1:{free_port()}"


def nobody_listens(listen: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(listen.split(":")[1]))) != 0


def test_right_answers_end_with_0_and_nothing_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listen = stand_in(monkeypatch, "fine")
    assert run(listen, tmp_path) == 0
    shown = capsys.readouterr().out
    assert "train pirate: done in" in shown
    assert len(re.findall(r"^right ", shown, re.MULTILINE)) == 7
    assert "Arr! Paris, matey!" in shown
    assert "make demo KEEP=1" in shown
    assert f"explain request-7 --url http://{listen}" in shown
    assert nobody_listens(listen)


def test_what_to_try_next_can_be_run_from_any_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listen = stand_in(monkeypatch, "fine")
    monkeypatch.chdir(tmp_path)
    assert run(listen, tmp_path) == 0
    beside = Path(sys.executable).with_name("sheaf")
    assert f"{beside} explain request-7 --url http://{listen}" in capsys.readouterr().out


def test_a_wrong_answer_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(stand_in(monkeypatch, "wrong"), tmp_path) == 1
    assert len(re.findall(r"^wrong  \w+ answers in its own style", capsys.readouterr().out, re.MULTILINE)) == 4


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("refuse", "error: smollm2 was answered 503: .*no pod is ready"),
        ("busy", r"error: sheaf up ended with status 1: 127\.0\.0\.1:8000 is in use; .* \(log: .*sheaf-up\.log\)"),
    ],
)
def test_what_goes_wrong_is_one_line_and_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, said: str
) -> None:
    listen = stand_in(monkeypatch, mode)
    assert run(listen, tmp_path) == 1
    assert re.match(said, capsys.readouterr().out.splitlines()[-1])
    assert nobody_listens(listen)


def test_a_demo_that_stays_up_ends_when_its_sheaf_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer_and_die(_: object, up: Serving) -> tuple[bool, str]:
        up.process.kill()
        return True, "r7"

    monkeypatch.setattr(demo_run, "question_and_judge", answer_and_die)
    assert run(stand_in(monkeypatch, "fine"), tmp_path, keep=True) == 1
    shown = capsys.readouterr().out
    assert "Try next:" in shown
    assert "sheaf up ended with status -9" in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_stays_up_ends_on_a_signal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    monkeypatch.setattr(demo_run, "question_and_judge", lambda *_: (True, "r7"))
    monkeypatch.setattr(demo_run, "stay", lambda *_: signal.raise_signal(number))
    listen = stand_in(monkeypatch, "fine")
    assert run(listen, tmp_path, keep=True) == 0
    assert capsys.readouterr().out.endswith("stopping\n")
    assert nobody_listens(listen)


def test_a_demo_under_nohup_outlives_its_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def hang_up(*_: object) -> None:
        signal.raise_signal(signal.SIGHUP)
        raise DemoError("it went on")

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(demo_run, "prepare", hang_up)
        assert run("127.0.0.1:1", tmp_path) == 1
    finally:
        signal.signal(signal.SIGHUP, before)
    assert capsys.readouterr().out == "error: it went on\n"


def test_an_interrupted_demo_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_run, "prepare", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert run("127.0.0.1:1", tmp_path) == 130
    assert capsys.readouterr().out == "interrupted; what was made so far is kept\n"


def test_assets_that_cannot_be_made_are_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise DemoError("no [network]; check it")

    monkeypatch.setattr(demo_run, "prepare", fail)
    assert run("127.0.0.1:1", tmp_path) == 1
    assert capsys.readouterr().out == "error: no [network]; check it\n"


def test_what_is_never_ready_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard: list[str] = []
    with serve(tmp_path, stand_in(monkeypatch, "slow"), tmp_path / "log") as up:
        while not up.said():
            time.sleep(0.01)
        with pytest.raises(DemoError, match=r"not ready in time \(0 s\): pod smollm2-0: starting"):
            up.await_ready(heard.append, timeout=0.05)
    assert set(heard) == {"pod smollm2-0: starting"}


def test_what_does_not_end_is_ended_by_force(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serving, "STOP_TIMEOUT", 0.1)
    listen = stand_in(monkeypatch, "stubborn")
    with serve(tmp_path, listen, tmp_path / "log") as up:
        up.await_ready(lambda _: None)
    assert up.process.returncode == -signal.SIGKILL
    assert nobody_listens(listen)


def test_a_second_ctrl_c_ends_what_is_still_stopping(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    up = stubborn(monkeypatch, tmp_path)
    pressed = threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,))
    pressed.start()
    up.stop()
    pressed.join()
    assert up.process.returncode == -signal.SIGKILL


def stubborn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Serving:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    return Serving("http://127.0.0.1:1", tmp_path / "log", process)


def test_replicas_that_are_missing_are_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    up = Serving("http://127.0.0.1:1", tmp_path / "log", None)  # type: ignore[arg-type]
    objects = {"models": [{"spec": {"replicas": 2}, "status": {"readyReplicas": 1}}], "adapters": []}
    monkeypatch.setattr(Serving, "objects", lambda _, kind: objects[kind])
    assert not up.settled()
    objects["models"][0]["status"] = {"readyReplicas": 2}
    assert up.settled()
    objects["adapters"] = [{"spec": {}, "status": {}}]
    assert not up.settled()
