"""Settings and Models of all sorts for tests of manifests, and what makes a Pod a valid one."""

import re
from typing import Any

from hypothesis import strategies as st
from operator_world import make_model
from sheaf_operator.planning import PodTemplate
from sheaf_operator.planning.manifest import PodSettings
from sheaf_operator.planning.template import pod_template

DNS = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
SAFE_VOLUMES = {"emptyDir", "projected", "persistentVolumeClaim"}


def make_settings(**fields: Any) -> PodSettings:
    images = {"agent": "example.org/agent:1", "engine": "example.org/vllm:1"}
    return PodSettings.model_validate({"images": images, "agentTokenSecret": "agent-token", **fields})


GPUS = {
    "nvidia-l4": {"tolerations": [{"key": "gpu", "effect": "NoSchedule"}], "env": {"A": "$(B)"}},
    "nvidia-a10": {"nodeSelector": {"gpu": "a10", "arch": "x"}, "env": {"A": "$(B)"}},
    "nvidia-h100": {"runtimeClass": "nvidia", "image": "example.org/vllm:h100", "resources": {"limits": {"cpu": 8}}},
    "amd-mi300": {"resource": "amd.com/gpu"},
}


def template(*, spot: bool = False, settings: PodSettings | None = None, **spec: Any) -> PodTemplate:
    spec = {"engine": {"name": "vllm"}, **spec}
    return pod_template(make_model(**spec), settings.digest if settings else "", spot=spot)


SOURCES = ["hf://org/name", "s3://bucket/prefix", "https://example.org/dir", "pvc://claim/a/b", "pvc://claim",
           "file:///mnt/models/a%20b", "file:///mnt/models"]  # fmt: skip
ACCELERATORS = st.lists(
    st.builds(lambda kind, count: {"type": kind, "count": count}, st.sampled_from(sorted(GPUS)), st.integers(1, 8)),
    max_size=4,
)
ENGINES = st.builds(
    lambda name, args, env, image: {"name": name, "args": args, "env": env} | ({"image": image} if image else {}),
    st.sampled_from(["vllm", "emulator"]),
    st.lists(st.sampled_from(["--max-model-len=2048", "--seed=$(X)", "--dtype=auto"]), max_size=2),
    st.sampled_from([[], [{"name": "OMP_NUM_THREADS", "value": "$(HOME)"}], [{"name": "HOME", "value": "/tmp/x"}]]),
    st.sampled_from([None, "example.org/own:2"]),
)
MODELS = st.fixed_dictionaries(
    {
        "source": st.sampled_from(SOURCES),
        "task": st.sampled_from(["Generate", "Embed"]),
        "engine": ENGINES,
        "accelerators": ACCELERATORS,
        "lora": st.sampled_from([{"slots": 0}, {"slots": 4, "maxRank": 64}]),
        "drainTimeout": st.sampled_from(["0s", "30s", "2m30.5s"]),
        "startupTimeout": st.sampled_from(["1s", "15m", "999999h"]),
    }
)
SETTINGS = st.builds(
    lambda *parts: make_settings(**{key: value for part in parts for key, value in part.items()}),
    st.just({"accelerators": GPUS, "hostPaths": ["/mnt/models", "/srv/adapters"]}),
    st.sampled_from([{}, {"emulatorUsesAccelerators": True}]),
    st.sampled_from([{}, {"modelCache": {"sizeLimit": "10Gi"}}, {"modelCache": {"type": "HostPath"}},
                     {"modelCache": {"type": "Claim", "claim": "models"}}]),
    st.sampled_from([{}, {"hf": {"secret": "hub", "key": "k"}, "s3": {"secret": "s3", "region": "eu"}},
                     {"s3": {"endpointUrl": "http://minio:9000"}, "https": {"allowPrivateAddresses": True}}]),
    st.sampled_from([{}, {"volumes": [{"name": "venv", "hostPath": {"path": "/venv"}}],
                          "engineMounts": [{"name": "venv", "mountPath": "/venv", "readOnly": True}],
                          "agentMounts": [{"name": "venv", "mountPath": "/tmp"}],
                          "engineEnv": [{"name": "PYTHONPATH", "value": "/venv"}],
                          "agentEnv": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]}]),
    st.sampled_from([{}, {"spotLabels": {"example.org/spot": "yes"}, "tolerations": [{"key": "gpu"}, {}],
                          "nodeSelector": {"pool": "a"}, "priorityClass": "high", "scheduler": "mine",
                          "serviceAccount": "engine", "labels": {"team": "a"}, "annotations": {"b": "c"},
                          "scratchLimit": "5Gi", "runAsUser": 1000}]),
)  # fmt: skip


def all_containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]


def faults(pod: dict[str, Any]) -> list[str]:
    """What the API server, or the admission of PodSecurity `restricted`, would refuse (host folders aside)."""
    found = [*_metadata_faults(pod["metadata"]), *_volume_faults(pod)]
    for container in all_containers(pod):
        found += [f"{container['name']}: {fault}" for fault in _container_faults(pod, container)]
    security = pod["spec"]["securityContext"]
    if not (security["runAsNonRoot"] and security["runAsUser"] and security["seccompProfile"]["type"]):
        found.append("the pod is not restricted")
    if pod["spec"]["automountServiceAccountToken"]:
        found.append("a token is mounted")
    return found


def _metadata_faults(metadata: dict[str, Any]) -> list[str]:
    bad = [value for value in metadata["labels"].values() if len(value) > 63 or not LABEL.fullmatch(value)]
    bad += [value for value in metadata["annotations"].values() if not isinstance(value, str)]
    owners = [owner for owner in metadata["ownerReferences"] if owner["controller"] and owner["uid"]]
    return [f"bad value {value}" for value in bad] + ([] if len(owners) == 1 else ["not one owner"])


def _volume_faults(pod: dict[str, Any]) -> list[str]:
    names = [volume["name"] for volume in pod["spec"]["volumes"]]
    kinds = [set(volume) - {"name"} for volume in pod["spec"]["volumes"]]
    mounted = {mount["name"] for container in all_containers(pod) for mount in container["volumeMounts"]}
    bad = [name for name in names if not DNS.fullmatch(name) or len(name) > 63]
    bad += [str(kind) for kind in kinds if len(kind) != 1 or not kind <= SAFE_VOLUMES | {"hostPath"}]
    bad += [f"{name} is not there" for name in mounted - set(names)]
    return bad + (["volumes twice"] if len(set(names)) < len(names) else [])


def _container_faults(pod: dict[str, Any], container: dict[str, Any]) -> list[str]:
    security, found = container["securityContext"], []
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    names = [entry["name"] for entry in container["env"]]
    if len(set(paths)) < len(paths) or len(set(names)) < len(names):
        found.append("mounts or variables twice")
    if not all(ENV_NAME.fullmatch(name) for name in names):
        found.append("bad variable")
    if security["allowPrivilegeEscalation"] or security["capabilities"] != {"drop": ["ALL"]}:
        found.append("it has privileges")
    if not security["readOnlyRootFilesystem"] or "/tmp" not in paths:
        found.append("its root is not read-only, or nothing can be written")
    if not container["image"] or not all(isinstance(word, str) and word for word in container["command"]):
        found.append("bad command or image")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        threshold = container.get(probe, {"failureThreshold": 1})["failureThreshold"]
        found += [f"bad {probe}"] if not 1 <= threshold < 2**31 else []
    return found
