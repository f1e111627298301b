"""Compute Engine's metadata, as documented: `preempted` becomes TRUE 30 s before a spot machine is ended, and
`maintenance-event` names what a host's maintenance does to the machine: a migration is a short pause; a termination
comes 60 s or, with accelerators, an hour later, which is not told apart here, so its time counts as unknown.
"""

from sheaf_engine.notices.values import Answer, Notice, UnreadableError, due, excerpt, expect_ok

HEADERS = {"metadata-flavor": "Google"}
PREEMPTED_PATH = "/computeMetadata/v1/instance/preempted"
MAINTENANCE_PATH = "/computeMetadata/v1/instance/maintenance-event"
LONGEST = 25.0
LONGEST_ETAG = 128


def preemption(answer: Answer, _machine: str = "") -> Notice | None:
    """The preemption that is under way; None where none is.

    Raises:
        UnreadableError: the answer is neither TRUE nor FALSE.
    """
    said = _word(answer)
    if said == "FALSE":
        return None
    if said != "TRUE":
        raise UnreadableError(f"neither TRUE nor FALSE: {excerpt(answer.body)}")
    message = "Compute Engine takes the spot machine back, as its metadata says"
    return Notice("SpotPreemption", message, said, due(answer, None, LONGEST), lasting=True)


def maintenance(answer: Answer, _machine: str = "") -> Notice | None:
    """The host's maintenance that ends the machine; None where none does.

    Raises:
        UnreadableError: the answer is no event that is known.
    """
    said = _word(answer)
    if said in ("NONE", "MIGRATE_ON_HOST_MAINTENANCE"):
        return None
    if said != "TERMINATE_ON_HOST_MAINTENANCE":
        raise UnreadableError(f"no maintenance event that is known: {excerpt(answer.body)}")
    return Notice("NodeMaintenance", "the host's maintenance ends the machine, as its metadata says", said)


def etag_of(text: str) -> str:
    """The version of an answer, to wait for the next one; empty where it could not be asked with."""
    fits = 0 < len(text) <= LONGEST_ETAG
    return text if fits and text.isascii() and text.isalnum() else ""


def _word(answer: Answer) -> str:
    expect_ok(answer)
    return answer.body[:64].decode("ascii", "replace").strip().upper()
