"""How the weights of a Model come into its pod: what is fetched, what is mounted, and which path the engine is given.

The fetching container leaves a link to the weights in a folder that all containers share, so that the engine's
command does not depend on how a source is turned into a folder's name. The emulator goes without weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from sheaf_crds import ModelSpec

from sheaf_operator.planning.manifest.settings import PodSettings

RUN_DIR = "/run/sheaf"
MODEL_LINK = f"{RUN_DIR}/model"
MODELS_DIR = "/var/lib/sheaf/models"
CLAIM_DIR = "/var/lib/sheaf/claim"
MODELS = "models"
SOURCE = "source"


@dataclass(frozen=True, slots=True)
class Weights:
    """What a source needs in a pod.

    Attributes:
        model_dir: what the engine is given as its model.
        fetch: arguments of the agent's fetch; empty where nothing is fetched.
        volumes: volumes of the pod.
        mounts: mounts that bring and read the weights; the engine's are read-only.
    """

    model_dir: str
    fetch: tuple[str, ...] = ()
    volumes: tuple[dict[str, Any], ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()


def weights(spec: ModelSpec, settings: PodSettings) -> Weights:
    """How the weights of that spec come into a pod."""
    if spec.engine.name == "emulator":
        return Weights(spec.source)
    scheme, _, rest = spec.source.partition("://")
    if scheme == "pvc":
        claim, _, path = rest.partition("/")
        return _mounted(f"file://{CLAIM_DIR}/{path}", CLAIM_DIR, {"persistentVolumeClaim": _claim(claim)})
    root = file_root(spec.source, settings.host_paths)
    if root is not None:
        return _mounted(spec.source, root, {"hostPath": {"path": root, "type": "Directory"}})
    fetch = ("--source", spec.source, "--to", MODELS_DIR, *access_flags(settings))
    return Weights(MODEL_LINK, _linked(fetch), (_cache(settings),), ({"name": MODELS, "mountPath": MODELS_DIR},))


def file_root(source: str, roots: Iterable[str]) -> str | None:
    """The folder among `roots` that a file:// source lies in; None for every other source.

    The agent checks the real path again, links included.
    """
    if not source.startswith("file:///"):
        return None
    path = unquote(source.removeprefix("file://")).rstrip("/")
    if {".", ".."} & set(path.split("/")):
        return None
    return next((root for root in roots if path == root or path.startswith(f"{root}/")), None)


def access_flags(settings: PodSettings) -> tuple[str, ...]:
    """Flags of the fetch that say how stores are reached."""
    flags = ["--allow-private-addresses"] if settings.https.allow_private_addresses else []
    named = (
        ("--s3-endpoint-url", settings.s3.endpoint_url),
        ("--hf-endpoint", settings.hf.endpoint),
        ("--https-ca-file", settings.https.ca_file),
    )
    return (*flags, *(part for flag, value in named if value for part in (flag, value)))


def _mounted(source: str, root: str, volume: dict[str, Any]) -> Weights:
    fetch = ("--source", source, "--to", MODELS_DIR, "--allow-file-root", root)
    mount = {"name": SOURCE, "mountPath": root, "readOnly": True}
    return Weights(MODEL_LINK, _linked(fetch), ({"name": SOURCE, **volume},), (mount,))


def _linked(fetch: tuple[str, ...]) -> tuple[str, ...]:
    return ("fetch", *fetch, "--link", MODEL_LINK)


def _claim(name: str) -> dict[str, Any]:
    return {"claimName": name, "readOnly": True}


def _cache(settings: PodSettings) -> dict[str, Any]:
    cache = settings.model_cache
    if cache.type == "HostPath":
        return {"name": MODELS, "hostPath": {"path": cache.path, "type": "DirectoryOrCreate"}}
    if cache.type == "Claim":
        return {"name": MODELS, "persistentVolumeClaim": {"claimName": cache.claim}}
    limit = {"sizeLimit": str(cache.size_limit)} if cache.size_limit else {}
    return {"name": MODELS, "emptyDir": limit}
