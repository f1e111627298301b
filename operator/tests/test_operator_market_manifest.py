"""A pod's zone is the pod's own: in its affinity and an annotation, and in no template."""

from operator_manifests import make_settings, template
from sheaf_operator.planning.manifest.essence import essence
from sheaf_operator.planning.manifest.facts import node_facts, pod_facts
from sheaf_operator.planning.manifest.pod import pod_manifest

ZONE = "topology.kubernetes.io/zone"


def terms(pod):
    affinity = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [
        {(one["key"], *one["values"]) for one in term["matchExpressions"]} for term in affinity["nodeSelectorTerms"]
    ]


def test_a_pod_of_a_zone_runs_nowhere_else_whatever_marks_the_node_as_spot():
    pod = pod_manifest("m-0", template(spot=True), make_settings(), "zone-b")
    assert all((ZONE, "zone-b") in term for term in terms(pod))
    assert pod["metadata"]["annotations"]["sheaf.dev/zone"] == "zone-b"
    free = pod_manifest("m-0", template(spot=True), make_settings())
    assert not any(key == ZONE for term in terms(free) for key, *_ in term)
    assert pod["metadata"]["labels"] == free["metadata"]["labels"]


def test_an_installation_that_chooses_zones_itself_is_left_to_it():
    pod = pod_manifest("m-0", template(spot=True), make_settings(nodeSelector={ZONE: "zone-a"}), "zone-b")
    assert "sheaf.dev/zone" not in pod["metadata"]["annotations"]
    assert not any(key == ZONE for term in terms(pod) for key, *_ in term)


def test_the_zone_of_a_pod_is_its_nodes_and_before_it_has_one_the_one_asked_for():
    pod = essence(pod_manifest("m-0", template(spot=True), make_settings(), "zone-b"))
    assert pod_facts(pod, None, None, 0.0).zone == "zone-b"
    node = node_facts({"metadata": {"name": "n", "labels": {ZONE: "zone-c"}}})
    assert pod_facts(pod, node, None, 0.0).zone == "zone-c"
