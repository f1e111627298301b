"""`sheaf profile`: measure a real engine, so that simulations are of it and not of an estimate."""

import asyncio
import os
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from sheaf_engine.timing import PRESETS, TimingProfile
from sheaf_engine.timing.fitting import Fit, UnfitError

from sheaf.cli.errors import CliError
from sheaf.profiling.engine import ProfilingError
from sheaf.profiling.measure import Bounds, Measured, measure
from sheaf.profiling.measure import profile as profile_of
from sheaf.profiling.plan import LONGEST, SHORTEST, NotStreamedError

FITTED = ("step_overhead_s", "prefill_token_s", "prefill_attention_s", "decode_sequence_s", "kv_token_s")
OF_ADAPTERS = ("lora_adapter_s", "lora_rank_token_s", "adapter_load_s")


def profile(
    url: Annotated[str, typer.Argument(help="An engine, or a gateway before one replica, as http://HOST:PORT.")],
    out: Annotated[Path, typer.Option(help="File to write the timing profile to.")] = Path("profile.json"),
    model: Annotated[str | None, typer.Option(help="Model to ask [default: the first that is no adapter].")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapter to ask too, for what adapters cost; repeat for more.")
    ] = None,
    rank: Annotated[int, typer.Option(min=0, max=1024, help="Rank of the adapters, if known.")] = 0,
    base: Annotated[str, typer.Option(help="Preset that says what cannot be measured.")] = "custom",
    requests: Annotated[int, typer.Option(min=1, max=10_000, help="Requests at most.")] = 400,
    seconds: Annotated[float, typer.Option(min=1.0, max=3600.0, help="Seconds at most.")] = 60.0,
    concurrency: Annotated[int, typer.Option(min=2, max=256, help="Requests at once at most.")] = 8,
    longest: Annotated[
        int, typer.Option(min=4 * SHORTEST, max=131_072, help="Tokens of the longest prompt.")
    ] = LONGEST,
    key: Annotated[str | None, typer.Option(help="API key [default: SHEAF_API_KEY].")] = None,
) -> int:
    """Put a bounded load on an engine that serves nobody else, and write its timing profile."""
    bounds = Bounds(requests=requests, seconds=seconds, concurrency=concurrency, longest=longest)
    where, known = _url(url), _base(base)
    _spare(out)
    token = key or os.environ.get("SHEAF_API_KEY")
    try:
        measured = asyncio.run(measure(where, token, model, adapter or [], rank, bounds))
        found, fitted = profile_of(measured, known)
    except NotStreamedError as error:
        raise CliError(f"{error}; a timing profile needs answers that are streamed: ask the engine itself") from error
    except (ProfilingError, UnfitError) as error:
        raise CliError(str(error)) from error
    except ValueError as error:
        raise CliError(f"{where} and the preset {base} do not go together: {error}; choose another --base") from error
    _write(out, found)
    _show(measured, found, fitted, out)
    return 0


def _url(text: str) -> str:
    found = urlsplit(text if "://" in text else f"http://{text}")
    try:
        good = found.scheme in ("http", "https") and bool(found.hostname) and found.port != 0
    except ValueError:
        good = False
    if not good:
        raise CliError(f"{text}: is no URL of an engine; write http://HOST:PORT", code=2)
    return found.geturl().rstrip("/").removesuffix("/v1")


def _base(name: str) -> TimingProfile:
    if name not in PRESETS:
        raise CliError(f"--base {name}: no such timing preset; presets are {', '.join(sorted(PRESETS))}", code=2)
    return PRESETS[name]


def _spare(path: Path) -> None:
    """Refuse to write where something else is, before anything is measured."""
    if not path.parent.is_dir():
        raise CliError(f"{path}: there is no folder {path.parent}; make it, or name another file with --out", code=2)
    try:
        if path.exists():
            TimingProfile.from_json(path.read_text())
    except (OSError, ValueError) as error:
        raise CliError(f"{path} exists and is no timing profile; name another file with --out", code=2) from error


def _write(path: Path, found: TimingProfile) -> None:
    try:
        path.write_text(found.to_json() + "\n")
    except OSError as error:
        raise CliError(f"{path}: cannot be written: {error.strerror}") from error


def _show(measured: Measured, found: TimingProfile, fitted: Fit, path: Path) -> None:
    print(f"{measured.card.name}: {measured.requests} requests in {measured.seconds:.1f} s")
    for name in (*FITTED, *(OF_ADAPTERS if measured.alone else ())):
        print(f"  {name:<22} {getattr(found, name):.3e}")
    errors = f"a decode step within {fitted.decode_error:.1%}, a first token within {fitted.first_error:.1%}"
    print(f"this tells {errors} (medians)")
    print(f"a request costs {fitted.request_s * 1000:.1f} ms besides (HTTP, tokenizing), which no profile has")
    print(f"written to {path}; use it: sheaf simulate -f MANIFESTS --profile {path}")
