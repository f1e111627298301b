"""Pods: every one is valid and unprivileged, and each part of Model and settings shows in it where it should."""

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_manifests import GPUS, MODELS, SETTINGS, all_containers, faults, make_settings, template
from pydantic import ValidationError
from sheaf_operator.planning.manifest import ManifestError, PodSettings, pod_manifest, refusal
from sheaf_operator.planning.manifest.containers import literal
from sheaf_operator.planning.manifest.refusal import disregard


def pod_of(settings: PodSettings | None = None, *, spot: bool = False, **spec: Any) -> dict[str, Any]:
    return pod_manifest("m-0", template(spot=spot, **spec), settings or make_settings(accelerators=GPUS))


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in all_containers(pod) if one["name"] == name)


def env(pod: dict[str, Any], name: str = "engine") -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container(pod, name)["env"]}


def mounts(pod: dict[str, Any], name: str) -> dict[str, bool]:
    """Paths of a container, and whether they are read-only."""
    return {one["mountPath"]: one.get("readOnly", False) for one in container(pod, name)["volumeMounts"]}


def volumes(pod: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for one in pod["spec"]["volumes"]}


def config(pod: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(pod["metadata"]["annotations"]["sheaf.dev/agent-config"]))


def terms(pod: dict[str, Any]) -> list[list[dict[str, Any]]]:
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [term["matchExpressions"] for term in required["nodeSelectorTerms"]]


def fits(pod: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether the scheduler takes a node with these labels."""

    def holds(one: dict[str, Any]) -> bool:
        return (labels.get(one["key"]) in one["values"]) == (one["operator"] == "In")

    return any(all(holds(one) for one in term) for term in terms(pod))


@settings(max_examples=40)
@given(MODELS, SETTINGS, st.booleans())
def test_every_pod_is_valid_and_unprivileged_or_there_is_a_reason(
    spec: dict[str, Any], chosen: PodSettings, spot: bool
):
    made = template(spot=spot, **spec)
    if refusal(made.spec, chosen):
        with pytest.raises(ManifestError):
            pod_manifest("m-0", made, chosen)
        return
    pod = pod_manifest("m-0", made, chosen)
    assert faults(pod) == []
    assert pod == pod_manifest("m-0", made, PodSettings.model_validate(chosen.to_wire())), "equal inputs, equal pods"
    assert json.loads(json.dumps(pod)) == pod


def test_the_pod_says_whose_it_is_and_what_it_runs():
    made = template()
    metadata = pod_manifest("m-abc-0", made, make_settings())["metadata"]
    assert metadata["name"] == "m-abc-0"
    assert metadata["labels"] == {
        "app.kubernetes.io/name": "sheaf-engine",
        "app.kubernetes.io/managed-by": "sheaf",
        "sheaf.dev/model": "m",
        "sheaf.dev/template": made.hash,
    }
    assert metadata["ownerReferences"][0]["uid"] == "uid-m"
    assert metadata["ownerReferences"][0]["blockOwnerDeletion"] is False
    assert "finalizers" not in metadata


def test_the_agent_is_there_before_the_engine_and_after_it():
    pod = pod_of()
    assert [one["name"] for one in pod["spec"]["initContainers"]] == ["fetch-model", "agent"]
    agent, engine = container(pod, "agent"), container(pod, "engine")
    assert agent["restartPolicy"] == "Always"
    assert "restartPolicy" not in container(pod, "fetch-model")
    assert agent["startupProbe"]["httpGet"]["path"] == "/healthz", "the engine starts only after this one"
    assert agent["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert engine["startupProbe"]["periodSeconds"] * engine["startupProbe"]["failureThreshold"] == 900
    assert mounts(pod, "agent")["/run/sheaf"] is False
    assert mounts(pod, "engine")["/run/sheaf"] is True
    assert mounts(pod, "engine")["/var/lib/sheaf/adapters"] is True


def test_the_engine_drains_before_it_stops_and_the_pod_waits_for_it():
    pod = pod_of(drainTimeout="1m30.5s")
    assert container(pod, "engine")["lifecycle"]["preStop"]["exec"]["command"] == [
        "python3", "-I", "/run/sheaf/drain.py", "90.5",
    ]  # fmt: skip
    assert pod["spec"]["terminationGracePeriodSeconds"] == 91 + 15


def test_the_agent_reads_its_configuration_and_token_from_one_folder():
    pod = pod_of(lora={"slots": 2, "maxAdapters": 5, "maxRank": 64})
    told = config(pod)
    assert (told["model"], told["capacity"], told["maxRank"]) == ("m", 5, 64)
    assert (told["engineUrl"], told["listen"]) == ("http://127.0.0.1:8000", "0.0.0.0:8001")
    assert (told["modelDir"], told["runDir"]) == ("/run/sheaf/model", "/run/sheaf")
    sources = volumes(pod)["config"]["projected"]["sources"]
    assert (
        sources[0]["downwardAPI"]["items"][0]["fieldRef"]["fieldPath"]
        == "metadata.annotations['sheaf.dev/agent-config']"
    )
    assert sources[1]["secret"]["name"] == "agent-token"
    assert told["tokenFile"] == "/etc/sheaf/token"
    assert "/etc/sheaf" not in mounts(pod, "engine"), "the engine has no token"


def test_nothing_that_users_write_is_expanded_by_kubernetes():
    engine = {"name": "vllm", "args": ["--seed=$(X)"], "env": [{"name": "A", "value": "$(B) $$"}]}
    pod = pod_of(engine=engine)
    assert "--seed=$$(X)" in container(pod, "engine")["command"]
    assert env(pod)["A"] == "$$(B) $$$$"


@given(st.text(alphabet="$()AB "))
def test_a_literal_comes_out_as_it_went_in(text: str):
    """Kubernetes' rule: $$ is $, $(NAME) is the variable, everything else stays."""
    out = re.sub(r"\$(\$|\([^)]*\))?", lambda match: "$" if match[1] in ("$", None) else "EXPANDED", literal(text))
    assert out == text


def test_variables_of_the_model_win_over_the_installations_and_these_over_defaults():
    chosen = make_settings(
        accelerators={"nvidia-l4": {"env": {"A": "accelerator", "B": "accelerator"}}},
        engineEnv=[{"name": "B", "value": "installation"}, {"name": "C", "value": "installation"},
                   {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "False"}],
    )  # fmt: skip
    engine = {"name": "vllm", "env": [{"name": "C", "value": "model"}, {"name": "DO_NOT_TRACK", "value": "0"}]}
    found = env(pod_of(chosen, engine=engine, accelerators=[{"type": "nvidia-l4"}]))
    assert (found["A"], found["B"], found["C"], found["DO_NOT_TRACK"]) == ("accelerator", "installation", "model", "0")
    assert found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert found["HOME"] == "/tmp"


def test_credentials_come_by_secret_to_agent_and_fetch_and_never_to_the_engine():
    pod = pod_of(make_settings(hf={"secret": "hub"}, s3={"secret": "keys", "region": "eu-1"}))
    for name in ("agent", "fetch-model"):
        assert env(pod, name)["HF_TOKEN"]["secretKeyRef"] == {"name": "hub", "key": "token"}
        assert env(pod, name)["AWS_SESSION_TOKEN"]["secretKeyRef"]["optional"] is True
        assert env(pod, name)["AWS_DEFAULT_REGION"] == "eu-1"
    assert not {"HF_TOKEN", "AWS_ACCESS_KEY_ID"} & set(env(pod))
    assert "HF_TOKEN" not in env(pod_of(), "agent")


def test_stores_are_reached_as_the_installation_says():
    chosen = make_settings(
        s3={"endpointUrl": "http://minio:9000"},
        hf={"endpoint": "https://hub.example.org"},
        https={"allowPrivateAddresses": True, "caFile": "/etc/ca/ca.pem"},
    )
    pod = pod_of(chosen)
    command = " ".join(container(pod, "fetch-model")["command"])
    for part in ("--s3-endpoint-url http://minio:9000", "--hf-endpoint https://hub.example.org",
                 "--https-ca-file /etc/ca/ca.pem", "--allow-private-addresses"):  # fmt: skip
        assert part in command
    assert config(pod)["s3EndpointUrl"] == "http://minio:9000"
    assert config(pod)["httpsCaFile"] == "/etc/ca/ca.pem"


def test_a_claim_is_mounted_read_only_and_checked():
    pod = pod_of(source="pvc://weights/llama/8b")
    assert volumes(pod)["source"]["persistentVolumeClaim"] == {"claimName": "weights", "readOnly": True}
    assert "file:///var/lib/sheaf/claim/llama/8b" in container(pod, "fetch-model")["command"]
    for name in ("fetch-model", "agent", "engine"):
        assert mounts(pod, name)["/var/lib/sheaf/claim"] is True
    assert "models" not in volumes(pod)


def test_a_folder_of_the_node_is_mounted_read_only_where_the_installation_allows_it():
    chosen = make_settings(hostPaths=["/mnt/models", "/srv/adapters"])
    pod = pod_of(chosen, source="file:///mnt/models/llama")
    assert volumes(pod)["source"]["hostPath"] == {"path": "/mnt/models", "type": "Directory"}
    assert mounts(pod, "engine")["/mnt/models"] is True
    assert "/srv/adapters" not in mounts(pod, "engine"), "adapters are copied before the engine sees them"
    assert mounts(pod, "agent")["/srv/adapters"] is True
    assert config(pod)["allowedFileRoots"] == ["/mnt/models", "/srv/adapters"]


@pytest.mark.parametrize("source", ["file:///etc", "file:///mnt/modelsx/a", "file:///mnt/models/%2e%2e/etc"])
def test_another_folder_of_the_node_is_refused(source: str):
    with pytest.raises(ManifestError, match=r"SourceNotAllowed.*hostPaths"):
        pod_of(make_settings(hostPaths=["/mnt/models"]), source=source)


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        ({}, {"emptyDir": {}}),
        ({"sizeLimit": "1Gi"}, {"emptyDir": {"sizeLimit": "1073741824"}}),
        ({"type": "HostPath", "path": "/data"}, {"hostPath": {"path": "/data", "type": "DirectoryOrCreate"}}),
        ({"type": "Claim", "claim": "models"}, {"persistentVolumeClaim": {"claimName": "models"}}),
    ],
)
def test_fetched_models_are_kept_where_the_installation_says(cache: dict[str, str], volume: dict[str, Any]):
    pod = pod_of(make_settings(modelCache=cache))
    assert volumes(pod)["models"] == {"name": "models", **volume}
    assert mounts(pod, "fetch-model")["/var/lib/sheaf/models"] is False
    assert mounts(pod, "engine")["/var/lib/sheaf/models"] is True


def test_the_emulator_needs_no_weights_no_shared_memory_and_no_accelerator():
    pod = pod_of(engine={"name": "emulator"}, accelerators=[{"type": "made-up"}], source="file:///not/there")
    assert [one["name"] for one in pod["spec"]["initContainers"]] == ["agent"]
    assert "shm" not in volumes(pod)
    assert container(pod, "engine")["image"] == "example.org/agent:1"
    assert container(pod, "engine")["command"][:3] == ["python", "-m", "sheaf_engine.emulator"]
    assert "modelDir" not in config(pod)
    assert container(pod, "engine")["resources"] == {}


def test_the_emulator_may_ask_for_accelerators_to_try_out_scheduling():
    chosen = make_settings(
        accelerators=GPUS, emulatorUsesAccelerators=True, resources={"emulator": {"limits": {"cpu": 1}}}
    )
    pod = pod_of(chosen, engine={"name": "emulator"}, accelerators=[{"type": "nvidia-l4", "count": 2}])
    assert container(pod, "engine")["resources"]["limits"] == {"cpu": "1", "nvidia.com/gpu": "2"}


def test_accelerators_are_asked_for_by_resource_nodes_and_taints():
    pod = pod_of(accelerators=[{"type": "nvidia-l4", "count": 2}])
    engine = container(pod, "engine")
    assert engine["resources"]["limits"] == engine["resources"]["requests"] == {"nvidia.com/gpu": "2"}
    assert fits(pod, {"sheaf.dev/accelerator": "nvidia-l4"})
    assert not fits(pod, {"sheaf.dev/accelerator": "nvidia-t4"})
    assert {"key": "nvidia.com/gpu", "operator": "Exists"} in pod["spec"]["tolerations"]
    assert {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["spec"]["tolerations"]
    assert "OMP_NUM_THREADS" not in env(pod)


def test_accelerators_that_run_the_same_pod_are_alternatives_in_order():
    pod = pod_of(accelerators=[{"type": "nvidia-l4"}, {"type": "nvidia-h100"}, {"type": "nvidia-a10"}])
    assert fits(pod, {"sheaf.dev/accelerator": "nvidia-l4"})
    assert fits(pod, {"gpu": "a10", "arch": "x"})
    assert not fits(pod, {"sheaf.dev/accelerator": "nvidia-h100"}), "it would need another image"
    preferred = pod["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [one["weight"] for one in preferred] == [100, 50]


def test_a_type_of_accelerator_has_its_own_image_resources_and_runtime_class():
    pod = pod_of(accelerators=[{"type": "nvidia-h100", "count": 8}])
    engine = container(pod, "engine")
    assert (engine["image"], pod["spec"]["runtimeClassName"]) == ("example.org/vllm:h100", "nvidia")
    assert engine["resources"]["limits"] == {"cpu": "8", "nvidia.com/gpu": "8"}


def test_an_unknown_type_of_accelerator_is_refused_with_those_that_are_known():
    with pytest.raises(ManifestError) as caught:
        pod_of(accelerators=[{"type": "nvidia-l4"}, {"type": "nvidia-b200"}])
    assert caught.value.reason == "AcceleratorUnknown"
    assert "amd-mi300, nvidia-a10, nvidia-h100, nvidia-l4, not nvidia-b200" in caught.value.message


@pytest.mark.parametrize(
    ("accelerators", "lost"),
    [
        ([], ""),
        ([{"type": "nvidia-l4"}, {"type": "nvidia-a10"}], ""),
        ([{"type": "nvidia-l4"}, {"type": "nvidia-a10", "count": 4}], "4 nvidia-a10: no alternative to 1 nvidia-l4"),
        ([{"type": "nvidia-l4"}, {"type": "nvidia-h100"}], "1 nvidia-h100: no alternative to 1 nvidia-l4"),
    ],
)
def test_accelerators_that_no_pod_asks_for_are_said(accelerators, lost):
    said = disregard(template(accelerators=accelerators).spec, make_settings(accelerators=GPUS))
    assert (said.message.split(", ")[0] if said else "") == lost
    assert said is None or (said.reason == "AcceleratorDisregarded" and "; remove it" in said.message)


def test_an_installation_without_an_engine_image_says_so():
    bare = make_settings(images={"agent": "a"})
    with pytest.raises(ManifestError, match="EngineImageMissing"):
        pod_of(bare)
    assert container(pod_of(bare, engine={"name": "vllm", "image": "own"}), "engine")["image"] == "own"
    both = make_settings(images={"agent": "a", "engine": "gpu", "engineCpu": "cpu"})
    assert container(pod_of(both), "engine")["image"] == "cpu"


@pytest.mark.parametrize("argument", ["--api-k=x", "--ssl-k=x", "--no-enable-l", "--api_ke=x"])
def test_an_abbreviation_of_what_sheaf_sets_is_refused(argument: str):
    with pytest.raises(ManifestError, match=r"ArgumentRefused.*--"):
        pod_of(engine={"name": "vllm", "args": [argument]})


SPOT_NODES = [
    {"karpenter.sh/capacity-type": "spot"},
    {"eks.amazonaws.com/capacityType": "SPOT"},
    {"cloud.google.com/gke-spot": "true"},
    {"cloud.google.com/gke-preemptible": "true"},
    {"cloud.google.com/gke-provisioning": "spot"},
    {"kubernetes.azure.com/scalesetpriority": "spot"},
    {"node.kubernetes.io/lifecycle": "spot"},
    {"example.org/spot": "yes"},
]
ON_DEMAND_NODES = [
    {},
    {"karpenter.sh/capacity-type": "on-demand"},
    {"eks.amazonaws.com/capacityType": "ON_DEMAND"},
    {"cloud.google.com/gke-provisioning": "standard"},
]


def test_spot_pods_run_on_every_clouds_spot_nodes_only_and_others_on_none():
    chosen = make_settings(spotLabels={"example.org/spot": "yes"})
    spot, on_demand = pod_of(chosen, spot=True), pod_of(chosen)
    assert [labels for labels in SPOT_NODES if not fits(spot, labels) or fits(on_demand, labels)] == []
    assert [labels for labels in ON_DEMAND_NODES if fits(spot, labels) or not fits(on_demand, labels)] == []
    assert spot["metadata"]["annotations"]["sheaf.dev/spot"] == "true"
    assert {"key": "kubernetes.azure.com/scalesetpriority", "operator": "Exists"} in spot["spec"]["tolerations"]
    assert "tolerations" not in on_demand["spec"]


def test_spot_and_accelerators_are_wanted_together():
    pod = pod_of(spot=True, accelerators=[{"type": "nvidia-l4"}])
    assert fits(pod, {"sheaf.dev/accelerator": "nvidia-l4", "karpenter.sh/capacity-type": "spot"})
    assert not fits(pod, {"sheaf.dev/accelerator": "nvidia-l4"})
    assert not fits(pod, {"karpenter.sh/capacity-type": "spot"})


def test_pods_of_a_model_keep_apart_and_spread_over_zones_where_they_can():
    spec = pod_of()["spec"]
    apart = spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    spread = spec["topologySpreadConstraints"][0]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("topology.kubernetes.io/zone", "ScheduleAnyway")


def test_what_the_installation_mounts_at_a_place_wins_and_its_interpreter_runs_vllm():
    chosen = make_settings(
        python="/venv/bin/python",
        volumes=[{"name": "venv", "hostPath": {"path": "/venv"}}, {"name": "shm", "emptyDir": {}}],
        engineMounts=[{"name": "venv", "mountPath": "/venv/", "readOnly": True}],
    )
    pod = pod_of(chosen)
    engine = container(pod, "engine")
    assert engine["command"][0] == "/venv/bin/python"
    assert engine["lifecycle"]["preStop"]["exec"]["command"][0] == "/venv/bin/python"
    assert mounts(pod, "engine")["/venv"] is True
    assert volumes(pod)["shm"] == {"name": "shm", "emptyDir": {}}
    assert "/venv" not in mounts(pod, "agent")


def test_pull_secrets_and_policies_are_passed_on():
    images = {"agent": "a", "engine": "e", "pullPolicy": "Never", "pullSecrets": ["registry"]}
    pod = pod_of(make_settings(images=images))
    assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert {one["imagePullPolicy"] for one in all_containers(pod)} == {"Never"}


def test_equal_settings_have_equal_digests_and_a_field_left_at_its_default_changes_none():
    plain = make_settings()
    assert plain.digest == make_settings(sharedMemory="2Gi", tolerations=[]).digest
    assert plain.digest != make_settings(sharedMemory="3Gi").digest
    assert plain.digest == PodSettings.model_validate(plain.to_wire()).digest


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hostPaths", ["/a/../b"], "absolute folder"),
        ("hostPaths", ["/"], "absolute folder"),
        ("resources", {"vllm": {"limits": {"cpu": "four"}}}, "not a quantity"),
        ("modelCache", {"type": "Claim"}, "needs the name of the claim"),
        ("python", "", "at least 1"),
        ("nonsense", 1, "not permitted"),
        ("runAsUser", 0, "greater than or equal"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field: str, value: object, said: str):
    with pytest.raises(ValidationError, match=said):
        make_settings(**{field: value})


def test_every_refusal_is_in_the_troubleshooting_table():
    reasons = set(re.findall(r'Refusal\(\s*"(\w+)"', inspect.getsource(sys.modules[refusal.__module__])))
    table = (Path(__file__).parents[2] / "docs/operations.md").read_text(encoding="utf-8")
    assert len(reasons) >= 4
    assert [reason for reason in sorted(reasons) if f"`{reason}`" not in table] == []
