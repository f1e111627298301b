"""What each cloud is asked, how often, and what helps where it does not answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sheaf_engine.notices import aws, azure, gcp
from sheaf_engine.notices.values import Answer, Notice

CloudName = Literal["aws", "gcp", "azure"]
ENDPOINT = "http://169.254.169.254"
WAIT = 25.0
# The first call of a scheduled-events client turns the service on and may take two minutes.
FIRST_EVENTS = 130.0


@dataclass(frozen=True, slots=True)
class Question:
    """One thing that a metadata service is asked again and again.

    Attributes:
        path: of the request; `query` its parameters.
        period: seconds from one question to the next.
        read: what an answer means, given the machine's name where the cloud needs it.
        wait: seconds for which the service may hold the answer until it changes; 0: it answers at once.
        first: seconds that the first answer may take.
    """

    path: str
    period: float
    read: Callable[[Answer, str], Notice | None]
    query: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0
    first: float = 0.0


@dataclass(frozen=True, slots=True)
class Cloud:
    """A cloud's metadata service. `tokens`: it wants a session token; `named`: answers name machines; `mend`: what to
    look at where it does not answer."""

    questions: tuple[Question, ...]
    mend: str
    headers: Mapping[str, str] = field(default_factory=dict)
    tokens: bool = False
    named: bool = False


CLOUDS: Mapping[CloudName, Cloud] = {
    "aws": Cloud(
        (Question(aws.ACTION_PATH, 2.0, aws.interruption), Question(aws.REBALANCE_PATH, 10.0, aws.rebalance)),
        mend="pods reach it where the instances' metadata options are on with a hop limit of 2 or more, and network "
        "policies let them",
        tokens=True,
    ),
    "gcp": Cloud(
        (
            Question(gcp.PREEMPTED_PATH, 1.0, gcp.preemption, wait=WAIT),
            Question(gcp.MAINTENANCE_PATH, 1.0, gcp.maintenance, wait=WAIT),
        ),
        mend="GKE's own metadata server may stand before the machine's and not serve this; network policies must let "
        "pods reach it",
        headers=gcp.HEADERS,
    ),
    "azure": Cloud(
        (Question(azure.EVENTS_PATH, 1.0, azure.events, azure.EVENTS_QUERY, first=FIRST_EVENTS),),
        mend="pods reach it unless the cluster restricts access to instance metadata, or network policies do",
        headers=azure.HEADERS,
        named=True,
    ),
}
