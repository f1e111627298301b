"""The `sheaf` command. Whatever goes wrong ends in one line and an exit code, never in a traceback.

Only the module of the command that is asked for is imported, so that `sheaf get` does not wait for what `sheaf up`
needs.
"""

import importlib
import os
import sys
from collections.abc import Iterable

import typer
from typer.exceptions import TyperException

from sheaf.cli.errors import CliError

COMMANDS = {
    "up": "sheaf.cli.up:up",
    "get": "sheaf.cli.get:get",
    "explain": "sheaf.cli.explain:explain",
    "validate": "sheaf.cli.manifests:validate",
    "digest": "sheaf.cli.manifests:digest",
    "simulate": "sheaf.cli.simulate:simulate",
    "profile": "sheaf.cli.measure:profile",
    "plan": "sheaf.cli.plan:plan",
    "keys": "sheaf.cli.keys:app",
    "version": "sheaf.cli.version:version",
}


def build(names: Iterable[str]) -> typer.Typer:
    """The application with those commands."""
    app = typer.Typer(
        name="sheaf",
        help="Many LLMs and thousands of LoRA adapters behind one OpenAI-compatible endpoint.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_sheaf)
    for name in names:
        module, _, attribute = COMMANDS[name].partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        names = [argument for argument in arguments[:1] if argument in COMMANDS]
        code = build(names or COMMANDS)(arguments, standalone_mode=False)
        sys.stdout.flush()
    except CliError as error:
        return fail(str(error), error.code)
    except TyperException as error:
        return _misused(error)
    except KeyboardInterrupt:
        return 130
    except (BrokenPipeError, SystemExit) as error:
        return _unheard(error)
    except Exception as error:
        if os.environ.get("SHEAF_DEBUG"):
            raise
        return fail(f"unexpected {type(error).__name__}: {error}; SHEAF_DEBUG=1 shows where", 1)
    return code if isinstance(code, int) else 0


def fail(message: str, code: int) -> int:
    """Say what went wrong, where anybody still listens."""
    try:
        print(f"error: {message}", file=sys.stderr, flush=True)
    except OSError:
        return code
    return code


def _sheaf() -> None:
    """Many LLMs and thousands of LoRA adapters behind one OpenAI-compatible endpoint."""


def _unheard(error: BaseException) -> int:
    """The reader went away (`sheaf get pods | head -1`), which is nothing to complain about."""
    if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
        raise error
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _misused(error: TyperException) -> int:
    said = error.format_message() if hasattr(error, "format_message") else str(error)
    code = int(getattr(error, "exit_code", 2))
    return fail(f"{said} (`sheaf --help` shows every command)", code) if said else code
