"""The command line: useful output, one line for whatever goes wrong, the right exit code."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from sheaf.cli.explain import attempt_table, print_whole
from sheaf.cli.main import run
from sheaf.cli.table import age, columns

MODEL = {
    "apiVersion": "sheaf.dev/v1alpha1",
    "kind": "Model",
    "metadata": {"name": "base", "creationTimestamp": "2026-01-01T00:00:00Z"},
    "spec": {"source": "hf://org/name", "replicas": 2},
    "status": {
        "readyReplicas": 1,
        "adapters": 3,
        "conditions": [{"type": "Ready", "status": "False", "reason": "Starting", "message": "1 of 2 replicas ready"}],
    },
}
ADAPTER = {
    "metadata": {"name": "pirate"},
    "spec": {"modelRef": {"name": "base"}},
    "status": {
        "readyReplicas": 1,
        "desiredReplicas": 1,
        "conditions": [{"type": "Ready", "status": "True", "reason": "Resident"}],
        "placements": [{"pod": "base-0", "state": "Resident"}, {"pod": "base-1", "state": "Loading"}],
    },
}
POD = {
    "name": "base-0",
    "model": "base",
    "engineUrl": "http://127.0.0.1:9",
    "ready": True,
    "draining": True,
    "phase": "Ready",
    "restarts": 4,
    "startedAt": 0,
    "message": "a\x1b[31m",
}
TERMS = {"queue": 1.0, "prefill": 2.0, "adapter": 0.0, "harm": 0.5, "silence": 0.0, "total": 3.5}
RECORD = {
    "request_id": "r-1",
    "served": "pirate",
    "path": "/v1/chat/completions",
    "tenant": "gold",
    "status": 200,
    "ttft_ms": 12.3,
    "cached_tokens": 96,
    "attempts": [
        {
            "outcome": "ok",
            "decision": {
                "pod": "base-0",
                "mode": "Normal",
                "candidates": [
                    {"pod": "base-1", "standing": "Healthy", "cached_bytes": 0, "terms": {**TERMS, "total": 9.5}},
                    {"pod": "base-0", "standing": "Healthy", "cached_bytes": 512, "terms": TERMS},
                    {"pod": "base-2", "standing": "Open", "cached_bytes": 0, "terms": {}},
                ],
            },
        }
    ],
}
ANSWERS = {
    "/sheaf/v1/objects/models": (200, {"items": [MODEL]}),
    "/sheaf/v1/objects/adapters": (200, {"items": [ADAPTER]}),
    "/sheaf/v1/objects/pods": (200, {"items": [POD]}),
    "/sheaf/v1/objects/slos": (401, {"error": {"message": "key"}}),
    "/sheaf/v1/objects/autoscalingpolicies": (200, {"items": []}),
    "/sheaf/v1/decisions/r-1": (200, RECORD),
    "/sheaf/v1/decisions/r-2": (404, {"error": {"message": "no decision r-2 is held"}}),
}


class Management(BaseHTTPRequestHandler):
    """Answers as a gateway does."""

    def do_GET(self) -> None:
        status, body = ANSWERS.get(self.path, (404, None))
        content = json.dumps(body).encode() if body is not None else b"not json"
        self.send_response(status if body is not None else 200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Management)
    serving = threading.Thread(target=server.serve_forever, args=(0.01,))
    serving.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("SHEAF_URL", url)
    yield url
    server.shutdown()
    serving.join()
    server.server_close()


def lines(text: str) -> list[str]:
    return text.splitlines()


@pytest.mark.usefixtures("gateway")
def test_get_models_shows_what_is_wanted_what_is_there_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["get", "models"]) == 0
    heading, row = lines(capsys.readouterr().out)
    assert heading.split() == ["NAME", "REPLICAS", "ADAPTERS", "ENGINE", "READY", "REASON", "AGE", "MESSAGE"]
    assert row.split()[:6] == ["base", "1/2", "3", "vllm", "False", "Starting"]
    assert row.endswith("1 of 2 replicas ready")


@pytest.mark.usefixtures("gateway")
def test_get_models_counts_against_what_autoscaling_wants(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODEL, "status", MODEL["status"] | {"autoscaling": {"desiredReplicas": 3}})
    assert run(["get", "models"]) == 0
    assert lines(capsys.readouterr().out)[1].split()[1] == "1/3"


@pytest.mark.usefixtures("gateway")
def test_get_adapters_shows_where_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["get", "adp"]) == 0
    assert lines(capsys.readouterr().out)[1].split() == ["pirate", "base", "1/1", "True", "Resident", "base-0"]


@pytest.mark.usefixtures("gateway")
def test_get_pods_shows_drains_and_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["get", "pods"]) == 0
    shown = capsys.readouterr().out
    assert "Draining" in shown
    assert "\x1b" not in shown


@pytest.mark.usefixtures("gateway")
def test_get_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["get", "models", "base", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"items": [MODEL]}


@pytest.mark.usefixtures("gateway")
def test_get_of_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["get", "policies"]) == 0
    assert capsys.readouterr().out == "no autoscalingpolicies\n"


@pytest.mark.usefixtures("gateway")
def test_explain_shows_every_candidate_term_by_term_the_chosen_one_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "r-1"]) == 0
    shown = lines(capsys.readouterr().out)
    assert shown[0] == "pirate (/v1/chat/completions, tenant gold): status 200, TTFT 12 ms, 96 cached"
    assert shown[1].startswith("attempt 1: ok")
    assert shown[2].split() == ["POD", "STANDING", "CACHED", "QUEUE", "PREFILL", "ADAPTER", "HARM", "SILENCE", "TOTAL"]
    assert shown[3].split() == ["->", "base-0", "Healthy", "512", "B", "1.0", "2.0", "0.0", "0.5", "0.0", "3.5"]
    assert [row.split()[0] for row in shown[4:]] == ["base-1", "base-2"]


def test_no_cost_is_cut_off_however_narrow_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    long = "smollm2-" + "a" * 80
    candidate = {"pod": long, "standing": "Candidate", "cached_tokens": 1, "terms": dict.fromkeys(TERMS, 1234.5)}
    table = attempt_table(1, {"decision": {"pod": long, "candidates": [candidate]}})
    print_whole(Console(width=80, soft_wrap=True), table)
    row = capsys.readouterr().out.splitlines()[-1]
    assert long in row
    assert row.count("1234.5") == len(TERMS)


@pytest.mark.usefixtures("gateway")
def test_explain_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "r-1", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == RECORD


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["get", "slos"], 1, "wants a key with the scope admin"),
        (["get", "models", "other"], 1, "there is no models named other"),
        (["get", "cats"], 2, "'cats' cannot be shown"),
        (["get", "pods", "-o", "xml"], 2, "--output is 'xml'"),
        (["explain", "r-2"], 1, "no decision r-2 is held"),
        (["explain", "odd/../id"], 1, "does not answer as Sheaf does"),
        (["get", "pods", "--url", "http://127.0.0.1:1"], 1, "no Sheaf at http://127.0.0.1:1; start one with `sheaf up"),
        (["get", "pods", "--url", "http://[bad"], 1, "no Sheaf at"),
        (["get"], 2, "Missing argument"),
        (["serve"], 2, "No such command 'serve'"),
        (["get", "pods", "--nope"], 2, "--nope"),
        (["validate", "/no/such/path"], 1, "no such file or folder"),
        (["digest", "/no/such/path"], 1, "/no/such/path"),
        (["keys", "new"], 2, "--tenant"),
        (["keys", "new", "--tenant", "t", "--scope", "root"], 2, "write inference or admin"),
        (["up", "/no/such/path"], 1, "no such file or folder"),
        (["up", ".", "--listen", "nowhere"], 2, "write HOST:PORT"),
        (["up", ".", "--listen", "127.0.0.1:99999"], 2, "write HOST:PORT"),
        (["up", ".", "--keys", "/no/such/file"], 1, "sheaf keys new"),
    ],
)
@pytest.mark.usefixtures("gateway")
def test_whatever_goes_wrong_is_one_line_and_an_exit_code(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert said in shown.err


def test_a_surprise_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: 1 / 0)
    assert run(["version"]) == 1
    assert "unexpected ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setenv("SHEAF_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(["version"])


def test_ctrl_c_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.metadata.version", interrupted)
    assert run(["version"]) == 130
    assert capsys.readouterr().err == ""


def test_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == 0
    assert capsys.readouterr().out.startswith("sheaf 0.")


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    shown = capsys.readouterr()
    assert all(command in shown.out for command in ("up", "get", "explain", "validate", "digest", "keys"))
    assert shown.err == ""


def test_validate_counts_what_is_fine_and_lists_what_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        yaml.safe_dump({key: MODEL[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": "base"}})
    )
    assert run(["validate", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 Model in 1 file: fine\n"
    file.write_text(file.read_text().replace("replicas", "replcas"))
    assert run(["validate", str(file)]) == 1
    (problem,) = lines(capsys.readouterr().out)
    assert problem.startswith(f"{file}:")
    assert "spec.replcas" in problem


def test_digest_prints_what_a_spec_wants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert run(["digest", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("sha256:")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run(["digest", str(empty)]) == 1


def test_a_new_key_is_shown_once_and_only_its_hash_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["--tenant", "gold: [x", "--name", "on", "--scope", "admin", "--model", "base", "--model", "pirate"]
    assert run(["keys", "new", *names]) == 0
    shown = capsys.readouterr().out
    key = next(word for word in shown.split() if word.startswith("sk-sheaf-"))
    (entry,) = yaml.safe_load("keys:\n" + shown)["keys"]
    assert entry == {
        "name": "on",
        "tenant": "gold: [x",
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "scopes": ["admin"],
        "models": ["base", "pirate"],
    }


def test_a_reader_that_went_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "sheaf.cli", "version"], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_ages_are_short() -> None:
    assert [age(1000 - back, now=1000) for back in (5, 119, 120, 7199, 7200, 172_800)] == [
        "5s", "119s", "2m", "119m", "2h", "2d",
    ]  # fmt: skip
    assert age("2026-01-01T00:00:00Z", now=1_767_225_605) == "5s"
    assert [age(odd) for odd in (None, "yesterday")] == ["", ""]


def test_columns_line_up() -> None:
    assert columns(("A", "LONG"), [("wide cell", None), ("x", 1)]) == "A           LONG\nwide cell\nx           1"
