"""What answers of metadata services mean: what clouds document is understood, and nothing else is believed."""

import json
from datetime import UTC
from email.utils import format_datetime, formatdate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_engine.notices import aws, azure, gcp
from sheaf_engine.notices.clouds import CLOUDS
from sheaf_engine.notices.settle import NEAR, STEP, heard, told
from sheaf_engine.notices.values import Answer, Notice, UnreadableError, excerpt, http_time, iso_time

NOW = 1_700_000_000.0
READERS = [(name, question.read) for name, cloud in CLOUDS.items() for question in cloud.questions]


def answer(body: object, status: int = 200, ahead: float | None = 0.0) -> Answer:
    text = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return Answer(status, text, NOW, "" if ahead is None else formatdate(NOW + ahead, usegmt=True))


def action(word: str = "terminate", time: object = "2023-11-14T22:15:00Z", **more: Any) -> Answer:
    return answer({"action": word, "time": time}, **more)


def event(kind: str = "Preempt", **changes: object) -> dict[str, object]:
    whole = {
        "EventId": "E1",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": ["vm_1", "vm_2"],
        "EventStatus": "Scheduled",
        "NotBefore": formatdate(NOW + 40, usegmt=True),
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


def events(*listed: object, machine: str = "vm_1", ahead: float = 0.0) -> Notice | None:
    return azure.events(answer({"DocumentIncarnation": 3, "Events": list(listed)}, ahead=ahead), machine)


def left(found: Notice | None) -> float | None:
    assert found is not None
    return None if found.deadline is None else found.deadline - NOW


@pytest.mark.parametrize(
    ("given_answer", "seconds"),
    [
        (action(), 100.0),
        (action("stop"), 100.0),
        (action("hibernate"), 0.0),
        (action(time="2023-11-14T22:00:00Z"), 0.0),
        (action(time="2033-11-14T22:00:00Z"), 120.0),
        (action(time="2023-11-14T22:15:00"), 100.0),
        (action(time="soon"), 120.0),
        (action(time="2023-11-14T22:15:00Z" * 9), 120.0),
        (action(time=7), 120.0),
        (action(ahead=40.0), 60.0),
        (action(ahead=-3600.0), 120.0),
        (action(ahead=None), 100.0),
    ],
)
def test_an_interruption_leaves_what_ec2_says_and_never_more_than_two_minutes(given_answer, seconds):
    found = aws.interruption(given_answer)
    assert left(found) == seconds
    assert (found.reason, found.lasting, found.advisory) == ("SpotInterruption", True, False)


def test_a_machine_whose_clock_is_wrong_goes_by_the_clouds_clock():
    late = Answer(200, action().body, NOW - 3600, formatdate(NOW, usegmt=True))
    found = aws.interruption(late)
    assert found is not None
    assert found.deadline == NOW - 3600 + 100


def test_what_ec2_has_nothing_to_say_about_is_absent():
    assert aws.interruption(answer("<html>", 404)) is None
    assert aws.rebalance(answer("", 404)) is None


def test_a_rebalance_recommendation_is_an_advice():
    found = aws.rebalance(answer({"noticeTime": "2023-11-14T22:15:00Z"}))
    assert found is not None
    assert (found.reason, found.advisory, found.deadline) == ("RebalanceRecommendation", True, None)


@pytest.mark.parametrize(
    "wrong",
    [action("none"), action("TERMINATE"), answer({"time": "x"}), answer([]), answer("TRUE"), answer("", 500),
     answer("no", 403), answer({"action": ["terminate"]}), answer("[" * 50_000), answer(b"\xff\xfe")],
)  # fmt: skip
def test_other_answers_of_ec2_are_not_understood(wrong):
    with pytest.raises(UnreadableError):
        aws.interruption(wrong)


@pytest.mark.parametrize(
    ("body", "status", "token"),
    [
        ("AQAEAL==", 200, "AQAEAL=="),
        ("AQAEAL==\n", 200, "AQAEAL=="),
        ("a\r\nx: y", 200, ""),
        ("", 200, ""),
        ("ä", 200, ""),
        ("a" * 5000, 200, ""),
        ("good", 400, ""),
    ],
)
def test_a_token_is_one_word_that_a_header_can_hold(body, status, token):
    assert aws.token_of(answer(body, status)) == token


def test_a_preemption_of_compute_engine():
    assert gcp.preemption(answer("FALSE\n")) is None
    found = gcp.preemption(answer("TRUE"))
    assert left(found) == 25.0
    assert (found.reason, found.lasting) == ("SpotPreemption", True)
    for wrong in (answer("maybe"), answer("", 404), answer("TRUE" * 100)):
        with pytest.raises(UnreadableError):
            gcp.preemption(wrong)


def test_a_hosts_maintenance_counts_where_it_ends_the_machine():
    assert gcp.maintenance(answer("NONE")) is None
    assert gcp.maintenance(answer("MIGRATE_ON_HOST_MAINTENANCE")) is None
    found = gcp.maintenance(answer("TERMINATE_ON_HOST_MAINTENANCE"))
    assert (found.reason, found.deadline, found.lasting) == ("NodeMaintenance", None, False)
    with pytest.raises(UnreadableError, match="no maintenance event that is known: SOMETHING"):
        gcp.maintenance(answer("SOMETHING"))


@pytest.mark.parametrize(("text", "etag"), [("abc123", "abc123"), ("", ""), ("a&b=c", ""), ("a" * 129, ""), ("ä", "")])
def test_an_etag_is_asked_with_where_it_is_a_plain_word(text, etag):
    assert gcp.etag_of(text) == etag


@pytest.mark.parametrize(
    ("listed", "reason", "seconds"),
    [
        (event(), "SpotPreemption", 40.0),
        (event(Resources=["VM_1"]), "SpotPreemption", 40.0),
        (event(NotBefore="", EventStatus="Started"), "SpotPreemption", 0.0),
        (event(NotBefore=None), "SpotPreemption", 30.0),
        (event(NotBefore="tomorrow"), "SpotPreemption", 30.0),
        (event(EventId=None), "SpotPreemption", 40.0),
        (event(NotBefore=formatdate(NOW - 9, usegmt=True)), "SpotPreemption", 0.0),
        (event("Terminate"), "NodeTermination", 40.0),
        (event("Redeploy", NotBefore=formatdate(NOW + 600, usegmt=True)), "NodeRedeployment", 600.0),
        (event("Reboot", NotBefore=""), "NodeReboot", None),
        (event("Reboot", NotBefore="", EventStatus="Started"), "NodeReboot", 0.0),
    ],
)
def test_an_event_of_azure_counts_where_it_ends_this_machine(listed, reason, seconds):
    found = events(event("Freeze"), listed, event(Resources=["vm_3"]), 7, {"EventType": 3})
    assert found is not None
    assert (found.reason, left(found)) == (reason, seconds)


@pytest.mark.parametrize(
    "listed", [(), (event("Freeze"),), (event(Resources=["vm_11"]),), (event(Resources=[1]),), (event("Upgrade"),)]
)
def test_other_events_of_azure_end_nothing_here(listed):
    assert events(*listed) is None


def test_the_event_that_comes_first_counts():
    found = events(event("Redeploy", NotBefore=""), event("Reboot"), event(NotBefore=formatdate(NOW + 35)))
    assert found.reason == "SpotPreemption"


def test_a_document_of_azure_that_cannot_be_read_is_no_document_without_events():
    for wrong in (answer({"Events": {}}), answer({}), answer({"Events": [7]}), answer("", 410), answer("{")):
        with pytest.raises(UnreadableError):
            azure.events(wrong, "vm_1")


def test_the_name_of_a_machine_is_one_line():
    assert azure.name_of(answer("aks-pool_3\n")) == "aks-pool_3"
    for wrong in (answer(""), answer("a\x00b"), answer("a" * 257), answer("x", 429)):
        with pytest.raises(UnreadableError):
            azure.name_of(wrong)


@given(st.sampled_from(READERS), st.sampled_from([200, 200, 200, 204, 302, 404, 503]), st.binary(max_size=300),
       st.text(max_size=40), st.floats(0, 4e9))  # fmt: skip
def test_no_answer_does_more_than_be_understood_or_refused(reader, status, body, date, now):
    _bounded(reader[1], Answer(status, body, now, date))


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
dates = st.datetimes(timezones=st.just(UTC)).filter(lambda at: at.year > 999)
times = dates.map(format_datetime) | dates.map(lambda at: at.isoformat()) | json_values
fields = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(["terminate", "stop", "hibernate"]) | json_values,
        "time": times,
        "noticeTime": times,
        "Events": json_values
        | st.lists(
            st.fixed_dictionaries(
                {
                    "EventType": st.sampled_from(["Preempt", "Reboot", "Freeze"]) | json_values,
                    "Resources": st.lists(st.just("vm_1") | json_values, max_size=3) | json_values,
                },
                optional={"NotBefore": times, "EventStatus": st.sampled_from(["Started", ""]) | json_values},
            ),
            max_size=4,
        ),
    },
)


@settings(max_examples=50)
@given(st.sampled_from(READERS), fields, dates.map(format_datetime))
def test_whatever_the_fields_hold_a_notice_is_within_its_bounds(reader, content, date):
    _bounded(reader[1], Answer(200, json.dumps(content, default=str).encode(), NOW, date))


def _bounded(read: Any, given_answer: Answer) -> None:
    refusal, found = "", None
    try:
        found = read(given_answer, "vm_1")
    except UnreadableError as error:
        refusal = str(error)
    assert refusal == "" or (refusal.isprintable() and len(refusal) < 500)
    if found is not None:
        assert found.deadline is None or given_answer.now <= found.deadline <= given_answer.now + azure.LONGEST
        assert len(found.key) < 400
        assert len(found.message) < 200


@given(st.text(max_size=60))
def test_times_are_read_or_not_but_never_fail(text):
    for read in (http_time, iso_time):
        assert read(text) is None or isinstance(read(text), float)


def test_times_as_clouds_write_them():
    assert http_time("Mon, 19 Sep 2016 18:29:47 GMT") == iso_time("2016-09-19T18:29:47Z") == 1474309787.0
    assert iso_time("x" * 500) is None
    assert excerpt(b" \n\x00") == "nothing"


def test_a_lasting_notice_stays_and_another_is_taken_back():
    lasting, passing = Notice("A", "", lasting=True), Notice("B", "")
    known = heard(heard({}, "a", lasting), "b", passing)
    assert list(heard(heard(known, "a", None), "b", None).values()) == [lasting]
    assert heard(known, "c", None) == known


def test_the_deadline_of_an_event_only_comes_nearer_and_in_steps():
    def after(*deadlines: float | None, key: str = "k") -> float | None:
        known: Any = {}
        for number, deadline in enumerate(deadlines):
            known = heard(known, "q", Notice("A", "", key or str(number), deadline))
        return known["q"].deadline

    assert after(100.0, 100.9, 99.1) == 100.0
    assert after(100.0, 100.0 - STEP) == 98.0
    assert after(100.0, 150.0) == 100.0
    assert after(None, 100.0) == 100.0
    assert after(100.0, None) == 100.0
    assert after(100.0, 150.0, key="") == 150.0


def test_the_most_urgent_notice_is_told_and_an_advice_last():
    advice = Notice("Advice", "", advisory=True, deadline=NOW)
    soon, later, some_day = (Notice(f"{at}", "", deadline=at) for at in (NOW + 5, NOW + 50, None))
    assert told([], NOW, heed_advice=False) is None
    assert told([advice, some_day, later, soon], NOW, heed_advice=False) == soon
    assert told([advice, some_day], NOW, heed_advice=False) == some_day
    assert told([advice], NOW, heed_advice=False) == advice
    assert told([advice], NOW, heed_advice=True) == Notice("Advice", "", deadline=NOW)


def test_a_deadline_is_told_when_it_is_near():
    far = Notice("A", "", deadline=NOW + 600)
    assert told([far], NOW, heed_advice=False) == Notice("A", "")
    assert told([far], NOW + 600 - NEAR, heed_advice=False) == far
