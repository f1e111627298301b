"""The agent's command line.

python -m sheaf_engine.agent --config FILE                            run the agent
python -m sheaf_engine.agent fetch --source URL --to DIR [...]        fetch a base model; last line: model-dir PATH
python -m sheaf_engine.agent drain --config FILE --deadline SECONDS   drain a pod by hand
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sheaf_engine.agent import drain_hook
from sheaf_engine.agent.config import load_config, read_token
from sheaf_engine.agent.errors import AdapterError, ConfigError
from sheaf_engine.agent.model_fetch import fetch_model, point
from sheaf_engine.agent.run import serve
from sheaf_engine.agent.sources import parse_source
from sheaf_engine.agent.transfer import Budget, Outside

TERMINATION_LOG = Path("/dev/termination-log")
LONGEST_WORDS = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 1 after one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"fetch": _fetch, "drain": _drain}
    try:
        if given and given[0] in commands:
            return commands[given[0]](given[1:])
        return _serve(given)
    except (ConfigError, AdapterError) as error:
        line = f"error: {' '.join(str(error).split())}"
        sys.stderr.write(f"{line}\n")
        _leave_last_words(line)
        return 1


def _leave_last_words(line: str) -> None:
    """Where Kubernetes looks for the reason of a container's end; elsewhere there is no such file."""
    with suppress(OSError):
        descriptor = os.open(TERMINATION_LOG, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{line[:LONGEST_WORDS]}\n")


def _serve(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m sheaf_engine.agent", description="The agent beside an engine.")
    parser.add_argument("--config", type=Path, required=True, help="configuration file (JSON)")
    config = load_config(parser.parse_args(arguments).config)
    asyncio.run(serve(config))
    return 0


def _fetch(arguments: list[str]) -> int:
    given = _fetch_parser().parse_args(arguments)
    token = os.environ.get("HF_TOKEN") or None
    outside = Outside(
        file_roots=tuple(given.allow_file_root),
        allow_private_addresses=given.allow_private_addresses,
        s3_endpoint_url=given.s3_endpoint_url,
        hf_endpoint=given.hf_endpoint,
        hf_token=token,
        https_ca_file=given.https_ca_file,
    )
    parse_source(given.source)
    _say(f"fetching {given.source}")
    budget = Budget.of(given.size_limit, given.timeout)
    budget.tell = _Progress(given.source).tell
    folder, new = fetch_model(given.source, given.to, outside, budget)
    if given.link is not None:
        point(given.link, folder)
    _say("fetched" if new else "already there")
    _say(f"model-dir {folder}")
    return 0


class _Progress:
    """One line for every 256 MiB that arrived."""

    STEP = 256 * 2**20

    def __init__(self, source: str) -> None:
        self._source = source
        self._due = self.STEP

    def tell(self, used: int) -> None:
        """Note how many bytes arrived so far."""
        if used >= self._due:
            self._due = used + self.STEP
            _say(f"fetching {self._source}: {used // 2**20} MiB")


def _fetch_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sheaf_engine.agent fetch", description="Fetch a base model.")
    parser.add_argument("--source", required=True, help="hf:// s3:// https:// or file:// URL")
    parser.add_argument("--to", type=Path, required=True, help="folder to put models into")
    parser.add_argument("--link", type=Path, help="symbolic link to make to the model's folder")
    parser.add_argument("--allow-file-root", type=Path, action="append", default=[], help="folder for file:// sources")
    parser.add_argument("--allow-private-addresses", action="store_true", help="let https:// reach private addresses")
    parser.add_argument("--s3-endpoint-url", help="S3 service other than AWS's own")
    parser.add_argument("--hf-endpoint", help="model hub other than the default")
    parser.add_argument("--https-ca-file", type=Path, help="PEM file of further certificate authorities")
    parser.add_argument("--size-limit", type=int, default=2 * 2**40, help="bytes (default: 2 TiB)")
    parser.add_argument("--timeout", type=float, default=6 * 3600.0, help="seconds (default: six hours)")
    return parser


def _drain(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m sheaf_engine.agent drain", description="Drain the pod.")
    parser.add_argument("--config", type=Path, required=True, help="configuration file of the running agent")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds that running requests may take")
    given = parser.parse_args(arguments)
    config = load_config(given.config)
    key = read_token(config.token_file).decode()
    why = drain_hook.ask(config.own_url(config.address[1]), key, given.deadline)
    why = why or drain_hook.wait(config.engine_url, given.deadline)
    if why:
        raise ConfigError(why)
    _say("drained")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
