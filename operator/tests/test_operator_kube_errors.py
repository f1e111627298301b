"""What the API server refuses is said so that a person knows what to do; Events are one object a series."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_operator.cluster.kubernetes.errors import refusal
from sheaf_operator.cluster.kubernetes.notes import BURST, Quota, again, event_body, event_name, note
from sheaf_operator.cluster.kubernetes.resources import DECLARED, NODES, PODS
from sheaf_operator.planning import EmitEvent

EVENT = EmitEvent("Model", "m", "uid", "Warning", "ImagePullBackOff", "the image cannot be pulled")
FORBIDDEN = 'pods is forbidden: User "x" cannot create resource "pods" in API group "" in the namespace "n"'


@pytest.mark.parametrize(
    ("status", "message", "verb", "resource", "said"),
    [
        (403, FORBIDDEN, "create", PODS, "the operator's Role lacks the verb create on pods; grant it there"),
        (403, 'cannot list resource "nodes"', "list", NODES, "ClusterRole lacks the verb list on nodes"),
        (403, "cannot patch", "patch", DECLARED["Model"], "cannot"),
        (403, 'cannot patch resource "models/status"', "patch", DECLARED["Model"], "on models.sheaf.dev"),
        (403, "exceeded quota: pods=10", "create", PODS, "raise the ResourceQuota"),
        (403, "unable to create because it is being terminated", "create", PODS, "the namespace is being deleted"),
        (403, "denied by policy", "create", PODS, "an admission policy refuses it"),
        (401, "Unauthorized", "get", PODS, "renew its token"),
        (404, "not found", "list", DECLARED["SLO"], "are the CustomResourceDefinitions"),
        (409, "modified", "patch", DECLARED["SLO"], "looked at again"),
        (
            422,
            "spec.x: Invalid",
            "create",
            PODS,
            "spec.x: Invalid; the API server finds it invalid; change the named field",
        ),
        (429, "slow down", "create", PODS, "asks for fewer calls"),
        (500, "boom", "create", PODS, "has trouble"),
    ],
)
def test_each_refusal_says_what_to_do(status: int, message: str, verb: str, resource, said: str) -> None:
    assert said in str(refusal(status, {"message": message}, {}, verb, resource, "p"))


@given(st.integers(300, 599), st.dictionaries(st.text(), st.text() | st.none()), st.text(max_size=9))
def test_any_answer_becomes_one_bounded_line(status: int, answer, pause: str) -> None:
    error = refusal(status, answer, {"Retry-After": pause}, "create", PODS, "p")
    assert "\n" not in str(error)
    assert len(str(error)) < 900
    assert 0.0 <= error.retry_after <= 60.0


def test_the_same_event_has_the_same_name_and_another_one_another() -> None:
    assert event_name(EVENT) == event_name(EVENT)
    other = EmitEvent("Model", "m", "uid", "Warning", "ImagePullBackOff", "another message")
    assert event_name(EVENT) != event_name(other)


def test_repetitions_are_counted() -> None:
    assert again({}, 0.0)["series"]["count"] == 2
    assert again({"series": {"count": 7}}, 0.0)["series"]["count"] == 8


@given(st.text(max_size=3000))
def test_notes_fit_into_an_event(text: str) -> None:
    assert len(note(text).encode()) <= 1024


def test_an_event_names_its_object() -> None:
    body = event_body(EVENT, "ns", "me", 0.0)
    assert body["regarding"]["uid"] == "uid"
    assert body["eventTime"] == "1970-01-01T00:00:00.000000Z"


def test_one_object_may_cause_a_burst_and_then_few() -> None:
    quota = Quota()
    assert sum(quota.allows("a", 0.0) for _ in range(100)) == int(BURST)
    assert quota.allows("b", 0.0)
    assert not quota.allows("a", 59.0)
    assert quota.allows("a", 61.0)
