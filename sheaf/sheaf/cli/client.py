"""Calls to a running Sheaf's management API."""

import os
from typing import Any

import httpx

from sheaf.cli.errors import CliError

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT = 10.0


def base_url(url: str | None) -> str:
    """The URL that is meant: as given, or SHEAF_URL, or where `sheaf up` listens by default."""
    chosen = url or os.environ.get("SHEAF_URL") or DEFAULT_URL
    return chosen.rstrip("/") if "://" in chosen else f"http://{chosen.rstrip('/')}"


def fetch(path: str, url: str | None, key: str | None) -> Any:
    """The JSON at that path of the management API; CliError says what is wrong and what to do."""
    where = base_url(url)
    token = key or os.environ.get("SHEAF_API_KEY")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(f"{where}{path}", headers=headers, timeout=TIMEOUT, trust_env=False)
    except httpx.TimeoutException as error:
        raise CliError(f"{where} did not answer within {TIMEOUT:.0f} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CliError(f"no Sheaf at {where}; start one with `sheaf up PATH`, or name another with --url") from error
    if answer.status_code in (401, 403):
        raise CliError(f"{where} wants a key with the scope admin; set SHEAF_API_KEY or --key")
    if answer.status_code != 200:
        raise CliError(f"{where}{path} answered {answer.status_code}: {_message(answer)}")
    try:
        return answer.json()
    except ValueError as error:
        raise CliError(f"{where} does not answer as Sheaf does; name another with --url") from error


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]
