"""The command line: vLLM's flags, so that the emulator starts where vLLM would, and a few of its own.

Flags of vLLM that mean nothing here are taken, with or without a value, and named in one log line.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from sheaf_engine.emulator.events import EventsConfig
from sheaf_engine.emulator.faults import Fault
from sheaf_engine.timing import TimingProfile
from sheaf_engine.timing.profiles import PRESETS, preset

_PROFILE_FLAGS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_loras", "max_cpu_loras")
_DEFAULT_PRESET = "h100-8b"


class OptionError(ValueError):
    """A command line that cannot be served; the message says what is wrong and how to mend it."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to emulate and where to listen.

    Attributes:
        model: model name or directory, as given.
        served_names: names under which the base model is served; answers carry the first.
        host: address to listen on.
        port: port to listen on, 0 for any.
        uds: path of a Unix socket to listen on instead.
        profile: the timing model's coefficients.
        speed: how many times faster than the profile.
        tokenizer: directory with a tokenizer.json, if given.
        embeds: whether embeddings are served instead of text.
        lora: whether adapters can be used.
        max_lora_rank: highest rank accepted.
        lora_modules: adapters to serve from the start: (name, path).
        runtime_lora: whether adapters can be loaded and unloaded by request.
        trust_adapter_paths: whether an adapter whose path does not exist is taken all the same.
        prompt_tokens_details: whether usage tells the cached tokens.
        force_usage: whether every stream tells its usage.
        events: KV events.
        fault: what to do wrong.
        faults: whether ``POST /faults`` may change that.
        startup_delay_s: seconds until the port opens.
        grace_s: seconds that requests under way get at shutdown.
        development: whether vLLM's development endpoints are served.
        ignored: vLLM flags that were taken and ignored.
    """

    model: str
    served_names: tuple[str, ...]
    host: str
    port: int
    uds: str | None
    profile: TimingProfile
    speed: float
    tokenizer: Path | None
    embeds: bool
    lora: bool
    max_lora_rank: int
    lora_modules: tuple[tuple[str, str], ...]
    runtime_lora: bool
    trust_adapter_paths: bool
    prompt_tokens_details: bool
    force_usage: bool
    events: EventsConfig
    fault: Fault | None
    faults: bool
    startup_delay_s: float
    grace_s: int
    development: bool
    ignored: tuple[str, ...]


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Read the command line.

    Raises:
        OptionError: when it cannot be served.
    """
    flags = [_with_hyphens(argument) for argument in arguments]
    known, unknown = _parser().parse_known_args(flags)
    ignored = tuple(argument for argument in unknown if argument.startswith("--"))
    names = tuple(known.served_model_name or [known.model])
    directory = Path(known.tokenizer or known.model)
    return Options(
        model=known.model,
        served_names=names,
        host=known.host,
        port=known.port,
        uds=known.uds,
        profile=_profile(known),
        speed=_speed(known.speed),
        tokenizer=directory if directory.is_dir() else None,
        embeds=known.runner == "pooling" or known.task in ("embed", "embedding"),
        lora=known.enable_lora,
        max_lora_rank=known.max_lora_rank,
        lora_modules=tuple(map(_lora_module, known.lora_modules or ())),
        runtime_lora=_true(environment.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING")),
        trust_adapter_paths=known.trust_adapter_paths,
        prompt_tokens_details=known.enable_prompt_tokens_details,
        force_usage=known.enable_force_include_usage,
        events=_events(known.kv_events_config),
        fault=None if known.fault is None else _fault(known.fault),
        faults=known.faults,
        startup_delay_s=_delay(known.startup_delay),
        grace_s=known.shutdown_timeout,
        development=_true(environment.get("VLLM_SERVER_DEV_MODE")),
        ignored=ignored,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m sheaf_engine.emulator",
        description="Speaks vLLM's HTTP API, metrics and KV events over a timing model instead of a model.",
        allow_abbrev=False,
    )
    _add_vllm_flags(parser)
    _add_profile_flags(parser)
    own = parser.add_argument_group("emulation")
    own.add_argument("--profile", default=_DEFAULT_PRESET, help=f"a JSON file or one of: {', '.join(sorted(PRESETS))}")
    own.add_argument("--speed", type=float, default=1.0, help="how many times faster than the profile")
    own.add_argument("--fault", metavar="KIND:NUMBER", help="do something wrong; see docs/timing-model.md")
    own.add_argument("--faults", action="store_true", help="let POST /faults change that while it runs")
    own.add_argument("--startup-delay", type=float, default=0.0, help="seconds until the port opens")
    own.add_argument("--trust-adapter-paths", action="store_true", help="take adapters whose path does not exist")
    return parser


def _add_vllm_flags(parser: argparse.ArgumentParser) -> None:
    vllm = parser.add_argument_group("as in vLLM")
    vllm.add_argument("--model", required=True)
    vllm.add_argument("--served-model-name", nargs="+")
    vllm.add_argument("--host", default="127.0.0.1")
    vllm.add_argument("--port", type=int, default=8000)
    vllm.add_argument("--uds")
    vllm.add_argument("--tokenizer")
    vllm.add_argument("--runner", default="auto")
    vllm.add_argument("--task", default="auto")
    vllm.add_argument("--tensor-parallel-size", type=int, default=1, help="taken; the profile is of all of them")
    vllm.add_argument("--enable-lora", action="store_true")
    vllm.add_argument("--max-lora-rank", type=int, default=16)
    vllm.add_argument("--lora-modules", nargs="+", metavar="NAME=PATH")
    vllm.add_argument("--enable-prompt-tokens-details", action="store_true")
    vllm.add_argument("--enable-force-include-usage", action="store_true")
    vllm.add_argument("--kv-events-config", metavar="JSON", default="{}")
    vllm.add_argument("--shutdown-timeout", type=int, default=0)


def _add_profile_flags(parser: argparse.ArgumentParser) -> None:
    capacity = parser.add_argument_group("as in vLLM, in place of the profile's capacity")
    for name in _PROFILE_FLAGS:
        capacity.add_argument("--" + name.replace("_", "-"), type=int)
    capacity.add_argument("--block-size", type=int)
    capacity.add_argument("--num-gpu-blocks-override", type=int)
    capacity.add_argument("--no-enable-prefix-caching", action="store_true")
    capacity.add_argument("--enable-prefix-caching", action="store_true")


def _profile(known: argparse.Namespace) -> TimingProfile:
    try:
        base = _named_profile(known.profile)
        changes: dict[str, int | bool] = {
            name: value for name in _PROFILE_FLAGS if (value := getattr(known, name)) is not None
        }
        changes |= _blocks(base, known.block_size, known.num_gpu_blocks_override)
        if "max_cpu_loras" not in changes:
            changes["max_cpu_loras"] = max(base.max_cpu_loras, int(changes.get("max_loras", 0)))
        return base.with_changes(**changes, prefix_caching=base.prefix_caching and not known.no_enable_prefix_caching)
    except ValueError as error:
        raise OptionError(str(error)) from error


def _named_profile(name: str) -> TimingProfile:
    path = Path(name)
    if name in PRESETS or not path.is_file():
        return preset(name)
    try:
        return TimingProfile.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"--profile {name}: {error}") from error


def _blocks(base: TimingProfile, size: int | None, count: int | None) -> dict[str, int]:
    changes = {}
    if size is not None:
        changes = {"block_size": size, "num_blocks": base.num_blocks * base.block_size // max(1, size)}
    return changes | ({} if count is None else {"num_blocks": count})


def _speed(speed: float) -> float:
    if not 0 < speed < float("inf"):
        raise OptionError(f"--speed must be above 0, not {speed}")
    return speed


def _delay(seconds: float) -> float:
    if not 0 <= seconds < float("inf"):
        raise OptionError(f"--startup-delay must be 0 or more seconds, not {seconds}")
    return seconds


def _events(text: str) -> EventsConfig:
    try:
        return EventsConfig.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the value"
        raise OptionError(f"--kv-events-config: {field}: {first['msg']}") from error


def _lora_module(text: str) -> tuple[str, str]:
    if text.startswith("{"):
        try:
            entry = json.loads(text)
            return str(entry["name"]), str(entry["path"])
        except (ValueError, KeyError) as error:
            raise OptionError(f"--lora-modules: {text!r} needs the keys name and path") from error
    name, separator, path = text.partition("=")
    if not separator:
        raise OptionError(f"--lora-modules: {text!r} is not NAME=PATH")
    return name, path


def _fault(text: str) -> Fault:
    try:
        return Fault.parse(text)
    except ValueError as error:
        raise OptionError(f"--fault: {error}") from error


def _with_hyphens(argument: str) -> str:
    """vLLM takes underscores in flag names too."""
    if not argument.startswith("--"):
        return argument
    name, separator, value = argument.partition("=")
    return name.replace("_", "-") + separator + value


def _true(value: str | None) -> bool:
    return (value or "").strip().lower() in ("1", "true")


def environment() -> Mapping[str, str]:
    """The process's environment."""
    return os.environ
