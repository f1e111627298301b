"""The binaries: from ``KUBEBUILDER_ASSETS`` where they are there, otherwise built once from their Go modules.

Every module is built in a folder of its own and appears under its final name only when it is whole, so a build that
was cut off never leaves half a binary; a module whose pin stays is never built again. The first time takes about
thirteen minutes on two cores.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from .errors import ClusterError
from .pins import MODULES, STAGING, Module, bin_dir, cache_dir
from .shell import locked, run, say

ENVIRONMENT = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}
STAGED = re.compile(r"^\s*(k8s\.io/[a-z0-9-]+) => \./staging", re.MULTILINE)
KWOK_STAGES = ("kustomize/stage/node/fast", "kustomize/stage/node/heartbeat", "kustomize/stage/pod/fast")


def binary(name: str) -> Path:
    """Where a binary is: named by ``KUBEBUILDER_ASSETS``, or built.

    Raises:
        ClusterError: it was not built yet.
    """
    for folder in _folders():
        if (folder / name).is_file():
            return folder / name
    raise ClusterError(f"{name} is not there yet; `python e2e/cluster build` builds it")


def _folders() -> list[Path]:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    return [*([Path(assets)] if assets else []), bin_dir()]


def ensure() -> None:
    """Build whatever is missing; returns at once when nothing is."""
    missing = [module for module in MODULES if not _present(module)]
    if not missing:
        return
    with locked(cache_dir() / "build.lock", "building the cluster's binaries"):
        for module in missing:
            if not _complete(module):
                _build(module)
            _link(module)


def _present(module: Module) -> bool:
    """Kwok's stages come only with the build, so an asset of that name is not enough."""
    if module.name != "kwok" and all(any((f / name).is_file() for f in _folders()) for name, _ in module.packages):
        return True
    return _complete(module) and all((bin_dir() / name).is_file() for name, _ in module.packages)


def _home(module: Module) -> Path:
    return cache_dir() / "modules" / f"{module.name}-{module.digest}"


def _complete(module: Module) -> bool:
    return _home(module).is_dir()


def _link(module: Module) -> None:
    bin_dir().mkdir(parents=True, exist_ok=True)
    for name, _ in module.packages:
        link = bin_dir() / name
        link.unlink(missing_ok=True)
        link.symlink_to(_home(module) / name)


def _build(module: Module) -> None:
    _check_go()
    home = _home(module)
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{module.name}-") as scratch:
        source, out = Path(scratch) / "module", Path(scratch) / "out"
        source.mkdir()
        out.mkdir()
        _write_module(module, source)
        for name, package in module.packages:
            _compile(module, source, package, out / name)
        if module.name == "kwok":
            _keep_stages(module, source, out)
        out.rename(home)


def _check_go() -> None:
    if shutil.which("go") is None:
        raise ClusterError(
            "the cluster's binaries are built with Go 1.26 or later, which is not installed; install it, or name a "
            "folder of ready binaries by KUBEBUILDER_ASSETS, or a running cluster by SHEAF_E2E_KUBECONFIG"
        )


def _write_module(module: Module, source: Path) -> None:
    say(f"{module.name} {module.version}: resolving its modules")
    (source / "go.mod").write_text(module.go_mod + _replacements(module, source))
    if module.source:
        (source / "main.go").write_text(module.source)
    _go(["mod", "tidy"], source)


def _replacements(module: Module, source: Path) -> str:
    """Kubernetes replaces its staging modules by folders; their published versions are the same code."""
    if module.name != "kubernetes":
        return ""
    (source / "go.mod").write_text(f"module sheaf.dev/e2e/{module.name}\n")
    listing = _go(["mod", "download", "-json", f"{module.path}@{module.version}"], source)
    found = re.search(r'"GoMod": "([^"]+)"', listing)
    if found is None:
        raise ClusterError(f"go mod download named no go.mod for {module.path}@{module.version}")
    names = STAGED.findall(Path(found[1]).read_text())
    return "\nreplace (\n" + "".join(f"  {name} => {name} {STAGING}\n" for name in names) + ")\n"


def _compile(module: Module, source: Path, package: str, target: Path) -> None:
    say(f"{module.name} {module.version}: building {target.name} (minutes, and only while it is not in the cache)")
    begun = time.monotonic()
    _go(["build", "-trimpath", "-ldflags", module.ldflags, "-o", str(target), package], source)
    say(f"{module.name} {module.version}: built {target.name} in {time.monotonic() - begun:.0f} s")


def _keep_stages(module: Module, source: Path, out: Path) -> None:
    """How fake nodes and pods live: Kwok's own Stage objects, in one file."""
    folder = Path(_go(["list", "-m", "-f", "{{.Dir}}", module.path], source).strip())
    files = [file for stage in KWOK_STAGES for file in sorted((folder / stage).glob("*.yaml"))]
    texts = [file.read_text() for file in files if file.name != "kustomization.yaml"]
    (out / "stages.yaml").write_text("\n---\n".join(texts))


def kwok_stages() -> Path:
    """The file of Stage objects that Kwok plays."""
    return next(_home(module) / "stages.yaml" for module in MODULES if module.name == "kwok")


def _go(arguments: list[str], cwd: Path) -> str:
    return run(["nice", "-n", "10", "go", *arguments], cwd=cwd, env=ENVIRONMENT, timeout=3600)
