"""EC2's instance metadata (IMDSv2), as documented: `spot/instance-action` is absent (404) until two minutes before a
spot instance is stopped or terminated; hibernation begins at once. `events/recommendations/rebalance` is absent until
the risk of an interruption is raised; it says neither that nor when one comes, so it is an advice.
"""

from typing import Literal

from pydantic import BaseModel, Field

from sheaf_engine.notices.values import NOT_FOUND, Answer, Notice, due, iso_time, key_of, parsed

TOKEN_PATH = "/latest/api/token"  # noqa: S105 - a path
TTL_HEADER = "x-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "x-aws-ec2-metadata-token"  # noqa: S105 - a header's name
TOKEN_SECONDS = 21_600
ACTION_PATH = "/latest/meta-data/spot/instance-action"
REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"
LONGEST = 120.0
LONGEST_TOKEN = 4096


class _Action(BaseModel):
    action: Literal["terminate", "stop", "hibernate"]
    time: object = ""


class _Rebalance(BaseModel):
    notice_time: str = Field(alias="noticeTime")


def interruption(answer: Answer, _machine: str = "") -> Notice | None:
    """The interruption that is announced; None where none is. A time that cannot be read counts as two minutes.

    Raises:
        UnreadableError: the answer is neither.
    """
    if answer.status == NOT_FOUND:
        return None
    found = parsed(_Action, answer)
    time = found.time if isinstance(found.time, str) else ""
    deadline = answer.now if found.action == "hibernate" else due(answer, iso_time(time), LONGEST)
    message = "EC2 takes the spot instance back, as its metadata says"
    return Notice("SpotInterruption", message, key_of(found.action, time), deadline, lasting=True)


def rebalance(answer: Answer, _machine: str = "") -> Notice | None:
    """The recommendation to leave; None where there is none.

    Raises:
        UnreadableError: the answer is neither.
    """
    if answer.status == NOT_FOUND:
        return None
    found = parsed(_Rebalance, answer)
    message = "EC2 sees a raised risk of taking the spot instance back, as its metadata says"
    return Notice("RebalanceRecommendation", message, key_of(found.notice_time), lasting=True, advisory=True)


def token_of(answer: Answer) -> str:
    """The session token of an answer; empty where there is none that a header could hold."""
    text = answer.body.decode("ascii", "replace").strip()
    fits = answer.status == 200 and 0 < len(text) <= LONGEST_TOKEN
    return text if fits and all("!" <= letter <= "~" for letter in text) else ""
