"""The chart as helm renders it, for every way to install it."""

from __future__ import annotations

import base64
import json
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from chart.asked import asked, operator_of
from chart.helm import CHART, ROOT, Helm, HelmError, helm_binary, named, names, pod_specs
from chart.values_matrix import MATRIX, REFUSED
from redis import Redis
from redis.exceptions import AuthenticationError, BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from sheaf_engine.agent.errors import Reason
from sheaf_gateway.api.keys import read_keys
from sheaf_gateway.config import GatewayConfig
from sheaf_operator.config import OperatorConfig

REDIS = shutil.which("redis-server")
CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
KINDS = ["adapters.sheaf.dev", "autoscalingpolicies.sheaf.dev", "models.sheaf.dev", "slos.sheaf.dev"]


@pytest.fixture(scope="module")
def helm() -> Helm:
    return Helm(helm_binary())


@cache
def rendered(way: str) -> list[dict[str, Any]]:
    return Helm(helm_binary()).template(MATRIX[way])


@pytest.fixture(params=MATRIX)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The chart as each way to install it renders it."""
    return rendered(request.param)


def operator_config(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return dict(json.loads(named(objects, "ConfigMap", "sheaf-operator")["data"]["operator.json"]))


def gateway_config(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return dict(json.loads(named(objects, "ConfigMap", "sheaf-gateway")["data"]["gateway.json"]))


def test_what_is_generated_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "charts/generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("way", MATRIX)
def test_lint_finds_nothing(helm: Helm, way: str) -> None:
    helm("lint", "--strict", "--kube-version", "1.36.3", str(CHART), values=MATRIX[way])


def test_every_object_is_named_once_in_the_releases_namespace(objects: list[dict[str, Any]]) -> None:
    seen = set()
    for item in objects:
        namespace = item["metadata"].get("namespace")
        assert namespace == (None if item["kind"] in CLUSTER_WIDE else "serving")
        seen.add((item["kind"], item["metadata"]["name"]))
    assert len(seen) == len(objects)


def test_every_pod_passes_the_restricted_pod_security_standard(objects: list[dict[str, Any]]) -> None:
    specs = pod_specs(objects)
    assert len(specs) >= 3
    for spec in specs.values():
        pod = spec["securityContext"]
        assert (pod["runAsNonRoot"], pod["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
        assert not any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC"))
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]
        assert {kind for volume in spec.get("volumes", ()) for kind in volume} <= {
            "name",
            "configMap",
            "secret",
            "emptyDir",
        }


def test_no_rule_is_a_wildcard_and_none_reads_secrets(objects: list[dict[str, Any]]) -> None:
    for item in objects:
        for rule in item.get("rules", ()) if item["kind"].endswith("Role") else ():
            assert rule["apiGroups"]
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert "secrets" not in rule["resources"]


def test_the_processes_accept_their_configuration(objects: list[dict[str, Any]]) -> None:
    OperatorConfig.model_validate(operator_config(objects))
    GatewayConfig.model_validate(gateway_config(objects))


@pytest.mark.parametrize("mistake", REFUSED)
def test_wrong_values_are_refused_by_name(helm: Helm, mistake: str) -> None:
    values, said = REFUSED[mistake]
    with pytest.raises(HelmError) as refusal:
        helm.template(values)
    message = str(refusal.value)
    assert "values don't meet the specifications of the schema" in message
    assert all(word in message for word in said), message


def test_crds_are_those_of_the_repository_and_stay(helm: Helm) -> None:
    rendered = [item for item in helm.template() if item["kind"] == "CustomResourceDefinition"]
    assert sorted(item["metadata"]["name"] for item in rendered) == KINDS
    for item in rendered:
        source = yaml.safe_load((ROOT / f"crds/sheaf.dev_{item['metadata']['name'].split('.')[0]}.yaml").read_text())
        assert item["spec"] == source["spec"]
        assert item["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_crds_may_go_or_be_left_to_another_release(helm: Helm) -> None:
    going = helm.template({"crds": {"keep": False}})
    assert all("annotations" not in item["metadata"] for item in going if item["kind"] == "CustomResourceDefinition")
    assert names(helm.template({"crds": {"install": False}}), "CustomResourceDefinition") == []


def test_the_token_is_the_given_one_or_a_long_random_one(helm: Helm) -> None:
    given = {"agentToken": {"value": "t" * 40}}
    tokens = [named(helm.template(given), "Secret", "sheaf-agent-token")["data"]["token"] for _ in range(2)]
    assert tokens == ["dHR0" * 13 + "dA=="] * 2
    made = [named(helm.template(), "Secret", "sheaf-agent-token")["data"]["token"] for _ in range(2)]
    assert made[0] != made[1]
    assert all(len(token) == 64 for token in made)


def test_a_secret_of_others_is_used_everywhere(helm: Helm) -> None:
    objects = helm.template(MATRIX["secrets of others"])
    assert names(objects, "Secret") == []
    assert operator_config(objects)["pods"]["agentTokenSecret"] == "their.token"
    assert mounted(objects, "sheaf-operator") == {"their.token"}
    assert mounted(objects, "sheaf-gateway") == {"their.token", "their-salt", "their-redis", "their-keys"}
    shared = {"urlFile": "/etc/sheaf/shared-limits/url", "failOpen": False, "timeout": "100ms", "prefix": "prod"}
    assert gateway_config(objects)["sharedLimits"] == shared


def mounted(objects: list[dict[str, Any]], deployment: str) -> set[str]:
    """The Secrets that a Deployment's pods mount."""
    volumes = named(objects, "Deployment", deployment)["spec"]["template"]["spec"]["volumes"]
    return {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}


def test_the_gateways_share_one_salt(helm: Helm) -> None:
    given = helm.template({"gateway": {"cacheSalt": {"value": "s" * 40}}})
    assert named(given, "Secret", "sheaf-gateway-cache-salt")["data"]["salt"] == base64.b64encode(b"s" * 40).decode()
    made = [named(helm.template(), "Secret", "sheaf-gateway-cache-salt")["data"]["salt"] for _ in range(2)]
    assert made[0] != made[1]
    assert all(len(salt) == 64 for salt in made)
    assert gateway_config(helm.template())["saltSecretFile"] == "/etc/sheaf/cache-salt/salt"
    assert "sheaf-gateway-cache-salt" in mounted(given, "sheaf-gateway")


def test_gateways_count_alone_unless_there_is_a_redis(helm: Helm) -> None:
    assert "sharedLimits" not in gateway_config(helm.template())
    objects = helm.template(MATRIX["with redis"])
    shared = gateway_config(objects)["sharedLimits"]
    assert (shared["failOpen"], shared["prefix"]) == (True, "serving")
    assert "sheaf-redis" in mounted(objects, "sheaf-gateway")
    both = {"redis": {"enabled": True}, "gateway": {"sharedLimits": {"existingSecret": "their-redis"}}}
    with pytest.raises(HelmError, match=r"redis\.enabled would run one that nobody uses: set only one"):
        helm.template(both)


@pytest.mark.skipif(REDIS is None, reason="needs redis-server")
def test_the_bundled_redis_takes_its_configuration_and_asks_for_its_password(helm: Helm, tmp_path: Path) -> None:
    secret = named(helm.template(MATRIX["with redis"]), "Secret", "sheaf-redis")["stringData"]
    (tmp_path / "redis.conf").write_text(secret["redis.conf"])
    socket = tmp_path / "redis.sock"
    words = [str(REDIS), str(tmp_path / "redis.conf"), "--port", "0", "--unixsocket", str(socket)]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        try:
            with Redis(unix_socket_path=str(socket), password=urlsplit(secret["url"]).password) as client:
                assert eventually(client.ping)
                assert client.config_get("maxmemory", "maxmemory-policy", "save", "appendonly") == {
                    "maxmemory": str(128 * 2**20),
                    "maxmemory-policy": "allkeys-lru",
                    "save": "",
                    "appendonly": "no",
                }
            with Redis(unix_socket_path=str(socket)) as stranger, pytest.raises(AuthenticationError):
                stranger.ping()
        finally:
            server.terminate()


def eventually(call: Callable[[], object], seconds: float = 10.0) -> object:
    """What a call says once there is somebody to answer it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except (RedisConnectionError, BusyLoadingError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def test_keys_reach_the_gateway_as_its_keys_file(helm: Helm) -> None:
    objects = helm.template(MATRIX["keys"])
    read_keys(named(objects, "Secret", "sheaf-gateway-keys")["stringData"]["keys.yaml"].encode())
    assert gateway_config(objects)["keysFile"] == "/etc/sheaf/keys/keys.yaml"
    assert "keysFile" not in gateway_config(helm.template())


def test_budgets_never_block_a_lone_pod(helm: Helm) -> None:
    assert sorted(names(helm.template(), "PodDisruptionBudget")) == ["sheaf-gateway", "sheaf-operator"]
    assert names(helm.template(MATRIX["one of each"]), "PodDisruptionBudget") == []


def test_an_autoscaled_gateway_states_no_replicas(helm: Helm) -> None:
    objects = helm.template(MATRIX["scaled"])
    assert "replicas" not in named(objects, "Deployment", "sheaf-gateway")["spec"]
    assert named(objects, "HorizontalPodAutoscaler", "sheaf-gateway")["spec"]["maxReplicas"] == 20
    assert "sheaf-gateway" in names(objects, "PodDisruptionBudget")


def test_a_gateway_gets_the_time_that_it_takes_to_stop(helm: Helm) -> None:
    objects = helm.template(MATRIX["tuned"])
    spec = named(objects, "Deployment", "sheaf-gateway")["spec"]["template"]["spec"]
    times = gateway_config(objects)["times"]
    assert times == {"lameDuck": "12s", "shutdown": "300s", "firstByte": "5m", "hold": "90s"}
    assert spec["terminationGracePeriodSeconds"] == 12 + 300 + 10


def test_only_gateway_and_operator_reach_engine_pods(helm: Helm) -> None:
    rules = named(helm.template(), "NetworkPolicy", "sheaf-engines")["spec"]["ingress"]
    reach = {
        rule["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"]: [p["port"] for p in rule["ports"]]
        for rule in rules
    }
    assert reach == {"sheaf-gateway": [8000, 8001, 5557, 5558], "sheaf-operator": [8001]}
    assert all(len(rule["from"]) == 1 for rule in rules)


def test_agents_reach_the_metadata_of_their_machine_where_they_read_notices_and_egress_is_fenced(helm: Helm) -> None:
    def egress(way: str) -> list[dict[str, Any]]:
        return list(named(rendered(way), "NetworkPolicy", "sheaf-engines")["spec"].get("egress", []))

    metadata = {
        "to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}],
        "ports": [{"port": 80, "protocol": "TCP"}],
    }
    assert egress("notices of a cloud")[1:] == [metadata]
    assert metadata not in egress("notices from elsewhere") + egress("fenced") + egress("defaults")
    notices = operator_config(rendered("notices of a cloud"))["pods"]["notices"]
    assert notices == {"cloud": "aws", "rebalance": "Replace"}
    assert operator_config(rendered("notices from elsewhere"))["pods"]["notices"]["endpoint"] == "http://10.0.0.9:8111"
    assert "notices" not in operator_config(rendered("defaults"))["pods"]
    on = helm.template({"notices": {"cloud": "aws"}})
    assert "egress" not in named(on, "NetworkPolicy", "sheaf-engines")["spec"]


def test_a_fenced_gateway_still_answers_those_who_look_after_it(helm: Helm) -> None:
    rules = named(rendered("fenced"), "NetworkPolicy", "sheaf-gateway")["spec"]["ingress"]
    peers = [peer for rule in rules if {"port": "http", "protocol": "TCP"} in rule["ports"] for peer in rule["from"]]
    names = [next(iter(peer.values()))["matchLabels"] for peer in peers]
    beside = [one.get("app.kubernetes.io/name") or one.get("name") or one["app"] for one in names]
    assert sorted(beside) == ["chat", "monitoring", "sheaf-operator", "sheaf-test"]
    untested = helm.template({"networkPolicy": {"gateway": {"from": [{}]}}, "helmTest": {"enabled": False}})
    assert len(named(untested, "NetworkPolicy", "sheaf-gateway")["spec"]["ingress"]) == 3


def test_only_the_gateway_reaches_redis(helm: Helm) -> None:
    policy = named(helm.template(MATRIX["with redis"]), "NetworkPolicy", "sheaf-redis")["spec"]
    assert policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "sheaf-gateway"
    assert policy["egress"] == []


def test_images_come_from_one_registry_and_digests_win(helm: Helm) -> None:
    objects = helm.template(MATRIX["private registry"])
    images = {name: spec["containers"][0]["image"] for name, spec in pod_specs(objects).items()}
    assert images["Deployment/sheaf-operator"] == "registry.example.com/ml/sheaf-operator:1.2.3"
    assert images["Deployment/sheaf-gateway"] == "registry.example.com/ml/sheaf-gateway@sha256:" + "a" * 64
    assert operator_config(objects)["pods"]["images"] == {
        "agent": "registry.example.com/ml/sheaf-engine-agent:1.2.3",
        "engine": "registry.example.com/ml/sheaf-engine:1.2.3",
        "pullPolicy": "Always",
        "pullSecrets": ["my.registry"],
    }


def test_two_releases_share_no_cluster_wide_name(helm: Helm) -> None:
    without = {"crds": {"install": False}}
    first, second = (helm.template(without, namespace=namespace) for namespace in ("red", "blue"))
    wide = [{i["metadata"]["name"] for i in objects if i["kind"] in CLUSTER_WIDE} for objects in (first, second)]
    assert wide[0]
    assert not wide[0] & wide[1]


def test_operators_of_one_namespace_compete_for_one_lease(helm: Helm) -> None:
    for objects in (helm.template(release="red"), helm.template(release="blue", values={"fullnameOverride": "green"})):
        config = next(json.loads(i["data"]["operator.json"]) for i in objects if "operator.json" in i.get("data", {}))
        rules = [rule for item in objects if item["kind"] == "Role" for rule in item["rules"]]
        held = [rule["resourceNames"] for rule in rules if "resourceNames" in rule]
        assert (config["leaseName"], held) == ("sheaf-operator", [["sheaf-operator"]])


def test_a_second_operator_in_a_namespace_is_refused(helm: Helm, tmp_path: Path) -> None:
    beside = (operator_of("first", "serving"), operator_of("idle", "serving", replicas=0))
    with asked(tmp_path, "serving", beside) as kubeconfig:
        there = Helm(helm.path, kubeconfig)
        with pytest.raises(
            HelmError, match=r"release first serves the namespace serving already.*operator\.replicas to 0"
        ):
            there.template(release="second", options=["--dry-run=server"])
        assert there.template(release="first", options=["--dry-run=server"])
        assert there.template({"operator": {"replicas": 0}}, release="second", options=["--dry-run=server"])


def test_long_names_stay_within_kubernetes_bounds(helm: Helm) -> None:
    objects = helm.template(MATRIX["with redis"], release="r" * 53, namespace="n" * 63)
    for item in objects:
        assert len(item["metadata"]["name"]) <= (253 if item["kind"] in CLUSTER_WIDE else 63)
        assert all(len(str(value)) <= 63 for value in item["metadata"].get("labels", {}).values())


def test_a_changed_configuration_rolls_the_pods_and_nothing_else_does(helm: Helm) -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = named(helm.template(values), "Deployment", "sheaf-gateway")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) == checksum({"engines": {"sharedMemory": "8Gi"}})
    assert checksum({}) != checksum({"gateway": {"times": {"idle": "5m"}}})


def test_every_value_has_its_meaning_written_above_it() -> None:
    text = (CHART / "values.yaml").read_text()
    told = dict(runpy.run_path(str(ROOT / "charts/generate.py"))["documented"](text))
    untold = [path for path in _leaves(yaml.safe_load(text)) if not any(_under(path, key) for key in told)]
    assert untold == []
    assert all(meaning.endswith(".") for meaning in told.values())


def test_every_reason_of_an_agent_is_in_the_troubleshooting_table() -> None:
    table = (ROOT / "docs/operations.md").read_text().partition("## Troubleshooting by reason")[2]
    assert [reason for reason in Reason if f"`{reason}`" not in table] == []


def _under(path: str, key: str) -> bool:
    return path == key or path.startswith(key + ".")


def _leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [prefix + key]
    return found
