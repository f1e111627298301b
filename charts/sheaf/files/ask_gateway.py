"""What `helm test` runs in the cluster: one real answer through the gateway's Service.

Exit 0 with one line that says what answered, or why nothing was asked (no model is declared; every model is scaled to
zero; keys are configured and the test has none). Exit 1 with one line that says what failed and how to look further.
"""  # noqa: INP001 - it runs alone, from the chart

import os
import sys
import time
from typing import Any

import httpx

URL = os.environ["GATEWAY_URL"]
TIMEOUT_S = float(os.environ.get("TIMEOUT_SECONDS", "120"))
PAUSE_S = 2.0
MODEL = os.environ.get("MODEL", "")
KEY = os.environ.get("API_KEY", "")
NO_KEY = "skipped: the gateway asks for API keys; name a Secret that holds one in helmTest.apiKeySecret"
QUESTION = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}


def main() -> int:
    """Ask until something answers or the time is over; the exit status."""
    headers = {"authorization": f"Bearer {KEY}"} if KEY else {}
    said = "nothing was tried"
    with httpx.Client(base_url=URL, headers=headers, timeout=TIMEOUT_S) as gateway:
        for _ in range(int(TIMEOUT_S / PAUSE_S)):
            try:
                done, said = attempt(gateway)
            except httpx.HTTPError as error:
                done, said = False, f"{URL}: {error or type(error).__name__}"
            if done:
                return finish(said)
            time.sleep(PAUSE_S)
    sys.stdout.write(f"failed within {TIMEOUT_S:.0f} s: {said}\nlook further with: kubectl get models,adapters\n")
    return 1


def attempt(gateway: httpx.Client) -> tuple[bool, str]:
    """Whether there is nothing left to try, and one line about it."""
    listed = gateway.get("/v1/models")
    if listed.status_code in {401, 403}:
        return (False, "the API key of helmTest.apiKeySecret is refused") if KEY else (True, NO_KEY)
    if listed.status_code != 200:
        return False, f"GET /v1/models: {listed.status_code} {listed.text[:200]}"
    names = [MODEL] if MODEL else [model["id"] for model in listed.json()["data"]]
    if not names:
        return True, "skipped: no model is declared yet"
    return answers(gateway, names[:16])


def answers(gateway: httpx.Client, names: list[str]) -> tuple[bool, str]:
    """Ask the names in turn; the first answer counts."""
    refusals = {}
    for name in names:
        code, text = ask(gateway, name)
        if not code:
            return True, f"{name} answered: {text!r}"
        refusals[name] = code
    if set(refusals.values()) == {"model_at_zero"}:
        return True, "skipped: every model is scaled to zero"
    return False, ", ".join(f"{name}: {code}" for name, code in refusals.items())


def ask(gateway: httpx.Client, name: str) -> tuple[str, str]:
    """The refusal's code (empty: none) and the answer's text."""
    answer = gateway.post("/v1/chat/completions", json={"model": name, **QUESTION})
    body: dict[str, Any] = answer.json()
    if answer.status_code == 200:
        return "", str(body["choices"][0]["message"]["content"])
    code = str(body.get("error", {}).get("code") or answer.status_code)
    if code != "model_not_supported":
        return code, ""
    answer = gateway.post("/v1/embeddings", json={"model": name, "input": "hello"})
    if answer.status_code == 200:
        return "", f"{len(answer.json()['data'][0]['embedding'])} numbers"
    return str(answer.status_code), ""


def finish(said: str) -> int:
    """Say it and succeed."""
    sys.stdout.write(said + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
