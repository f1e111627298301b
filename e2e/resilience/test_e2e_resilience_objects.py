"""A hundred bad objects: refused with the mend, or shown as not ready with the reason; the good Model serves throughout."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from resilience.bad_objects import AROUND, PLURALS, Bad, refused, reported
from resilience.fleet import API_VERSION, Fleet, manifest
from resilience.load import Load

pytestmark = pytest.mark.timeout(300, func_only=True)


@pytest.fixture
def api(sheaf: Fleet) -> Iterator[httpx.Client]:
    """The API server's four kinds in the namespace, as an administrator."""
    with sheaf.kubectl.popen("proxy", "--port=0") as proxy:
        try:
            assert proxy.stdout is not None
            port = proxy.stdout.readline().rpartition(":")[2].strip()
            base = f"http://127.0.0.1:{port}/apis/{API_VERSION}/namespaces/{sheaf.namespace}"
            with httpx.Client(base_url=base, timeout=30) as client:
                yield client
        finally:
            proxy.kill()
            assert proxy.stderr is not None
            proxy.communicate()


@pytest.fixture
def around(sheaf: Fleet) -> Iterator[None]:
    """The objects that bad ones refer to, older by a second, which is how Kubernetes counts; what was made goes after."""
    sheaf.kubectl.apply(*(manifest(kind, name, spec) for kind, name, spec in AROUND))
    sheaf.says("adapter", "older", "Ready", "True")
    time.sleep(1)
    yield
    for kind, plural in PLURALS.items():
        names = {name for of, name, _ in AROUND if of == kind} | {bad.name for bad in reported() if bad.kind == kind}
        if names:
            sheaf.kubectl.delete(plural, *sorted(names), wait=False)


def create(api: httpx.Client, kind: str, made: dict[str, Any], **options: str) -> httpx.Response:
    words = {"fieldValidation": "Strict", "fieldManager": "user", **options}
    return api.post(f"/{PLURALS[kind]}", content=json.dumps(made), params=words)


def test_there_are_a_hundred() -> None:
    assert len({*(bad.name for bad in refused())}) + len({*(bad.name for bad in reported())}) == 100


def test_what_one_object_shows_to_be_wrong_is_refused_with_the_mend(sheaf: Fleet, api: httpx.Client) -> None:
    wrong = []
    with Load(sheaf.url, ["good"]) as load:
        for bad in refused():
            answer = create(api, bad.kind, bad.wrong)
            said = answer.json().get("message", "")
            if answer.status_code not in {400, 422} or bad.words not in said:
                wrong.append(f"{bad.kind} {str(bad.changes)[:80]}: {answer.status_code} {said[:300]}")
    assert not wrong, "\n".join(wrong)
    assert load.failed == 0, load


def test_what_was_refused_is_taken_when_it_is_mended(api: httpx.Client) -> None:
    answers = {bad.name: create(api, bad.kind, bad.mended, dryRun="All") for bad in refused()}
    assert [f"{name}: {answer.text}" for name, answer in answers.items() if answer.status_code != 201] == []


def test_what_others_show_to_be_wrong_is_told_and_mended_by_an_edit(
    sheaf: Fleet, api: httpx.Client, around: None
) -> None:
    with Load(sheaf.url, ["good"]) as load:
        for bad in reported():
            answer = create(api, bad.kind, bad.wrong)
            assert answer.status_code == 201, answer.text
        for bad in reported():
            said = sheaf.says(bad.kind.lower(), bad.name, bad.condition, "False", bad.reason)
            assert len(said.split("; ")) > 1, f"{bad.reason} names no mend: {said}"
        mend(sheaf, api)
    assert load.failed == 0, load


def mend(sheaf: Fleet, api: httpx.Client) -> None:
    """Edit each; a name is freed by whoever has it, because names cannot be edited."""
    made = {bad.name: uid(api, bad) for bad in reported()}
    for bad in reported():
        path = f"/{PLURALS[bad.kind]}/{bad.name}"
        headers = {"content-type": "application/merge-patch+json"}
        answer = api.patch(path, content=json.dumps(bad.mend), headers=headers)
        assert answer.status_code == 200, answer.text
    sheaf.kubectl.delete("adapter", "older")
    for bad in reported():
        sheaf.says(bad.kind.lower(), bad.name, bad.condition, "True")
    assert {bad.name: uid(api, bad) for bad in reported()} == made


def uid(api: httpx.Client, bad: Bad) -> str:
    return str(api.get(f"/{PLURALS[bad.kind]}/{bad.name}").json()["metadata"]["uid"])
