"""`sheaf keys`: API keys, of which Sheaf keeps the sha256 only."""

import hashlib
import re
import secrets
from typing import Annotated

import orjson
import typer

from sheaf.cli.errors import CliError

PREFIX = "sk-sheaf-"
SCOPES = ("inference", "admin")

app = typer.Typer(help="Make API keys.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """Make API keys."""


@app.command()
def new(
    tenant: Annotated[str, typer.Option(help="Whose requests are counted together.")],
    name: Annotated[str | None, typer.Option(help="Name of the key [default: the tenant's].")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="inference or admin; may be repeated.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Served name it may use; may be repeated; none: all.")] = None,
) -> None:
    """Print a new key, once, and its entry for the keys file."""
    scopes = scope or ["inference"]
    unknown = [one for one in scopes if one not in SCOPES]
    if unknown:
        raise CliError(f"--scope is {unknown[0]!r}; write inference or admin", 2)
    key = PREFIX + secrets.token_urlsafe(32)
    print(f"# The key, shown only now: {key}\n# Its entry for the keys file (under `keys:`):")
    print(entry(name or tenant, tenant, hashlib.sha256(key.encode()).hexdigest(), scopes, model or []))


def entry(name: str, tenant: str, digest: str, scopes: list[str], models: list[str]) -> str:
    """The YAML entry of a key."""
    lines = [f"name: {_quoted(name)}", f"tenant: {_quoted(tenant)}", f"sha256: {digest}", f"scopes: {_list(scopes)}"]
    lines += [f"models: {_list(models)}"] if models else []
    return "  - " + "\n    ".join(lines)


def _list(items: list[str]) -> str:
    return f"[{', '.join(_quoted(item) for item in items)}]"


def _quoted(text: str) -> str:
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", text) is not None
    reserved = text.lower() in ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    return text if plain and not reserved else orjson.dumps(text).decode()
