"""Images without a registry: the base by debootstrap, the repository's Dockerfile by buildah, into each node's containerd.

Images and their layers are kept in a store of their own in the cache folder. An image's tag is the digest of all that
goes into it, so what is built or imported already is never built or imported again, and a new build never changes a
running pod's image under it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .layout import Layout
from .node import PAUSE, ctr
from .pins import cache_dir
from .shell import locked, run, say

REPOSITORY = Path(__file__).resolve().parents[2]
BASE = "localhost/python:3.11-slim-bookworm"
BASE_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
TARGETS = ("operator", "gateway", "engine-agent")
CERTIFICATES = "/etc/ssl/certs"
PAUSE_FILE = f'FROM {BASE}\nENTRYPOINT ["/usr/bin/sleep", "infinity"]\n'
UNPACKED = ("var/cache/apt/archives", "var/lib/apt/lists")
KEPT_BUILDS = 3
MOST_LAYERS = 60


def _tool(program: str, *words: str | Path, timeout: float = 3600, stdin: str | None = None, check: bool = True) -> str:
    """buildah or podman on the cluster's own image store, in a mount namespace of its own, so that no mount is left."""
    store: list[str | Path] = ["--root", cache_dir() / "storage", "--runroot", cache_dir() / "storage-run"]
    apart = ["unshare", "--mount", "--propagation", "private", "--", "nice", "-n", "10"]
    return run([*apart, program, *store, *words], timeout=timeout, stdin=stdin, check=check)


def ensure_base() -> None:
    """Make the base image and the pause image, once."""
    if _exists(BASE) and _exists(PAUSE):
        return
    with locked(cache_dir() / "images.lock", "building images"):
        if not _exists(BASE):
            _bootstrap()
        if not _exists(PAUSE):
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "Dockerfile").write_text(PAUSE_FILE)
                _tool("buildah", "build", "--isolation", "chroot", "--pull-never", "--tag", PAUSE, folder)


def _exists(name: str) -> bool:
    return bool(_tool("buildah", "images", "--quiet", "--filter", f"reference={name}", check=False).strip())


def _bootstrap() -> None:
    say(f"{BASE}: installing a minimal Debian with Python (a minute, once)")
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".base-") as scratch:
        root, archive = Path(scratch) / "root", Path(scratch) / "base.tar"
        apart = ["unshare", "--mount", "--propagation", "private", "--", "nice", "-n", "10"]
        options = ["--variant=minbase", f"--include={BASE_PACKAGES}"]
        run([*apart, "debootstrap", *options, "bookworm", root], timeout=1800)
        for folder in UNPACKED:
            shutil.rmtree(root / folder, ignore_errors=True)
        run(["tar", "--numeric-owner", "-C", root, "-cf", archive, "."])
        _tool("podman", "import", archive, BASE)


def context_digest(repository: Path = REPOSITORY) -> str:
    """Twelve hex digits of everything that the images are made from."""
    digest = hashlib.sha256(BASE.encode())
    for file in sorted({repository / "Dockerfile", repository / ".dockerignore", *_context(repository)}):
        if file.is_file():
            content = file.read_bytes()
            digest.update(f"{file.relative_to(repository)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def _context(repository: Path) -> Iterable[Path]:
    """The files that ``.dockerignore`` (everything but what its ``!`` lines name) lets into a build."""
    ignore = repository / ".dockerignore"
    names = ignore.read_text().split() if ignore.exists() else []
    for name in (name[1:] for name in names if name.startswith("!")):
        top = repository / name
        files = top.rglob("*") if top.is_dir() else [top]
        yield from (file for file in files if "__pycache__" not in file.parts and file.suffix != ".pyc")


def names(repository: Path = REPOSITORY) -> dict[str, str]:
    """Target -> image name of what the working tree holds now."""
    tag = context_digest(repository)
    return {target: f"localhost/sheaf-{target}:{tag}" for target in TARGETS}


def build(repository: Path = REPOSITORY) -> dict[str, str]:
    """Build the Dockerfile's targets from the working tree where they are not built yet; target -> image name."""
    ensure_base()
    wanted = names(repository)
    with locked(cache_dir() / "images.lock", "building images"):
        for target, name in wanted.items():
            if not _exists(name):
                say(f"{name}: building")
                _build(repository, target, name)
                _forget_old_builds(target)
    return wanted


def _build(repository: Path, target: str, name: str) -> None:
    network = ["--isolation", "chroot", "--network", "host", "--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
    base = ["--pull-never", "--build-arg", f"BASE_IMAGE={BASE}"]
    _tool("buildah", "build", "--layers", *network, *base, "--target", target, "--tag", name, repository)


def _forget_old_builds(target: str) -> None:
    """Keep the newest few builds of a target (buildah lists the newest first), and a bounded number of layers."""
    ids = _tool("buildah", "images", "--quiet", "--filter", f"reference=localhost/sheaf-{target}").split()
    for image in list(dict.fromkeys(ids))[KEPT_BUILDS:]:
        _tool("buildah", "rmi", "--force", image, check=False)
    if len(_tool("buildah", "images", "--quiet", "--filter", "dangling=true").split()) > MOST_LAYERS:
        _tool("buildah", "rmi", "--prune", check=False)


def _forget_old_imports(layout: Layout, node: str) -> None:
    """Remove builds from a node that the store has forgotten and no container of the node uses.

    containerd knows each image by its name and, for the kubelet, by the digest of its configuration; both must go.
    """
    stored = set(_tool("buildah", "images", "--format", "{{.Name}}:{{.Tag}}", check=False).split())
    used = set(ctr(layout, node, "containers", "ls").split())
    rows = [line.split()[:3] for line in ctr(layout, node, "images", "ls").splitlines()[1:]]
    kept = {digest for name, _, digest in rows if name in used | stored or not _is_build(name)}
    if stale := [name for name, _, digest in rows if digest not in kept]:
        ctr(layout, node, "images", "rm", *stale)


def _is_build(name: str) -> bool:
    return name.startswith(("localhost/sheaf-", "sha256:")) and name != PAUSE


def load(layout: Layout, nodes: Sequence[str], images: Iterable[str]) -> None:
    """Import images from the store into the nodes that do not hold them."""
    for image in images:
        lacking = [node for node in nodes if image not in held(layout, node)]
        if lacking:
            say(f"{image}: importing into {' '.join(lacking)}")
            _import(layout, lacking, image)
    for node in nodes:
        _forget_old_imports(layout, node)


def held(layout: Layout, node: str) -> set[str]:
    """The names of the images in a node's containerd."""
    return set(ctr(layout, node, "images", "ls", "-q").split())


def _import(layout: Layout, nodes: Sequence[str], image: str) -> None:
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".archive-") as scratch:
        archive = Path(scratch) / "image.tar"
        _tool("buildah", "push", image, f"docker-archive:{archive}:{image}")
        with ThreadPoolExecutor(len(nodes)) as pool:
            list(pool.map(lambda node: ctr(layout, node, "images", "import", archive), nodes))
