"""The `sheaf` command. Whatever goes wrong ends in one line and an exit code, never in a traceback."""

import importlib.metadata
import os
import sys

import typer
from typer.exceptions import TyperException

from sheaf.cli import explain, get, keys, manifests, up
from sheaf.cli.errors import CliError

app = typer.Typer(
    name="sheaf",
    help="Many LLMs and thousands of LoRA adapters behind one OpenAI-compatible endpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("get")(get.get)
app.command("explain")(explain.explain)
app.command("validate")(manifests.validate)
app.command("digest")(manifests.digest)
app.add_typer(keys.app, name="keys")


@app.command()
def version() -> None:
    """Print the version."""
    print(f"sheaf {importlib.metadata.version('sheaf')}")


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        code = app(arguments, standalone_mode=False)
        sys.stdout.flush()
    except CliError as error:
        return fail(str(error), error.code)
    except TyperException as error:
        return fail(_usage(error), getattr(error, "exit_code", 2))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0


def fail(message: str, code: int) -> int:
    """Say what went wrong, where anybody still listens."""
    try:
        print(f"error: {message}", file=sys.stderr, flush=True)
    except OSError:
        return code
    return code


def _usage(error: TyperException) -> str:
    said = error.format_message() if hasattr(error, "format_message") else str(error)
    return f"{said} (`sheaf --help` shows every command)"
