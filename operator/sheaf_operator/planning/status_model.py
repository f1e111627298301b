"""What is said of a Model: how many of its pods serve, what hinders the others, whether a change is under way.

What is wrong with its references, or is not heeded of what it asks for, stands in a condition of its own (`Resolved`)
where pods serve without it: it must not hide what hinders them. Ready's message repeats it last.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sheaf_crds import Model, ModelStatus
from sheaf_crds.base import format_duration
from sheaf_crds.model import ModelAutoscaling

from sheaf_operator.planning.conditions import Verdict, conditions
from sheaf_operator.planning.pods import Wanted
from sheaf_operator.planning.refs import Finding
from sheaf_operator.planning.scaling import Desired
from sheaf_operator.planning.snapshot import PodFacts
from sheaf_operator.planning.words import are, counted, share

MODEL_LABEL = "sheaf.dev/model"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a Model's status is computed from."""

    model: Model
    desired: Desired
    wanted: Wanted
    pods: Sequence[PodFacts]
    adapters: int
    finding: Finding | None = None
    refusal: str = ""
    autoscaling: ModelAutoscaling | None = None

    @property
    def serving(self) -> int:
        """Pods that answer requests."""
        return sum(pod.serving for pod in self.pods)

    @property
    def live(self) -> list[PodFacts]:
        """Pods that are there to stay."""
        return [pod for pod in self.pods if pod.live]

    @property
    def current(self) -> list[PodFacts]:
        """Live pods of the templates that are wanted now."""
        return [pod for pod in self.live if pod.template_hash in self.wanted.hashes]

    @property
    def enough(self) -> bool:
        """Whether as many pods serve as are wanted."""
        return self.serving >= self.desired.replicas


def model_status(facts: ModelFacts, now: float) -> tuple[ModelStatus, tuple[Verdict, ...]]:
    """The status to store, and the verdicts in it."""
    model = facts.model
    verdicts = (_ready(facts), _available(facts), _progressing(facts, now), _resolved(facts))
    generation = model.metadata.generation
    status = ModelStatus(
        observed_generation=generation,
        conditions=conditions(model.status, verdicts, generation, now),
        replicas=sum(not pod.ended for pod in facts.pods),
        ready_replicas=facts.serving,
        selector=f"{MODEL_LABEL}={model.name}",
        adapters=facts.adapters,
        autoscaling=facts.autoscaling,
    )
    return status, verdicts


def stall_times(model: Model) -> list[float]:
    """When a Model that is not ready has had as long as a pod may take to start (Unix seconds)."""
    since = _not_ready_since(model)
    return [] if since is None else [since + model.spec.startup_timeout]


def _not_ready_since(model: Model) -> float | None:
    ready = model.status.condition("Ready")
    if ready is None or ready.status == "True" or ready.last_transition_time is None:
        return None
    return ready.last_transition_time.timestamp()


def _ready(facts: ModelFacts) -> Verdict:
    if facts.finding and facts.finding.blocks:
        return Verdict("Ready", "False", facts.finding.reason, facts.finding.message, alarming=True)
    serving = _serves(facts)
    return replace(serving, message=_and(serving.message, facts.finding.message if facts.finding else ""))


def _resolved(facts: ModelFacts) -> Verdict:
    if facts.finding is None:
        return Verdict("Resolved", "True", "Resolved", "all that it asks for is heeded")
    told = not facts.finding.blocks
    return Verdict("Resolved", "False", facts.finding.reason, facts.finding.message, alarming=told)


def _serves(facts: ModelFacts) -> Verdict:
    if not facts.desired.replicas:
        return Verdict("Ready", "True", "ScaledToZero", "no replicas are wanted")
    serving = min(facts.serving, facts.desired.replicas)
    count = _and(f"{share(serving, facts.desired.replicas, 'replica')} ready", facts.desired.note)
    count = _and(count, _advice(facts.pods))
    if facts.enough:
        return Verdict("Ready", "True", "Serving", count)
    reason, said = _trouble(facts.pods)
    if not reason and facts.refusal and len(facts.live) < facts.desired.replicas:
        reason, said = "PodRefused", facts.refusal
    if not reason:
        return Verdict("Ready", "False", "Starting", count)
    return Verdict("Ready", "False", reason, _and(count, said), alarming=True)


def _available(facts: ModelFacts) -> Verdict:
    if any(pod.answers for pod in facts.pods):
        return Verdict("Available", "True", "Serving", "at least one replica serves")
    reason = "Starting" if facts.desired.replicas else "ScaledToZero"
    return Verdict("Available", "False", reason, "no replica serves")


def _progressing(facts: ModelFacts, now: float) -> Verdict:
    if facts.finding and facts.finding.blocks:
        return Verdict("Progressing", "False", facts.finding.reason, facts.finding.message)
    current, live = facts.current, facts.live
    late = _late(facts, now)
    if late is not None:
        return _stalled(facts, late)
    if facts.refusal:
        return Verdict("Progressing", "False", "PodRefused", facts.refusal, alarming=facts.enough)
    if len(current) < len(live):
        told = f"{share(len(current), len(live), 'replica')} {are(len(current))} of the new template"
        return Verdict("Progressing", "True", "RollingUpdate", _and(told, _trouble(current)[1] or _mute(current)))
    if facts.wanted.split.stand_ins:
        told = f"{counted(facts.wanted.split.stand_ins, 'on-demand replica')} until spot capacity can be had"
        return Verdict("Progressing", "True", "WaitingForSpot", told)
    return _scaling(facts)


def _scaling(facts: ModelFacts) -> Verdict:
    wanted, split = facts.desired.replicas, facts.wanted.split
    if sum(not pod.ended for pod in facts.pods) != split.on_demand + split.spot:
        spares = f" and {counted(split.spares, 'spare')}" if split.spares else ""
        return Verdict("Progressing", "True", "Scaling", f"{counted(wanted, 'replica')}{spares} {are(wanted)} wanted")
    if not facts.enough:
        return Verdict("Progressing", "True", "Starting", "replicas are starting")
    return Verdict("Progressing", "False", "Complete", "nothing is left to do")


def _late(facts: ModelFacts, now: float) -> PodFacts | None:
    """A pod of the wanted template that should have served long ago, where it is missed.

    One that served and crashed is as old; so without a rollout the Model must have been unready for as long too.
    """
    longest = now - facts.model.spec.startup_timeout
    since = _not_ready_since(facts.model)
    if len(facts.current) == len(facts.live) and (facts.enough or since is None or since > longest):
        return None
    return min(
        (pod for pod in facts.current if not pod.ready and pod.created_at <= longest), key=_telling, default=None
    )


def _stalled(facts: ModelFacts, late: PodFacts) -> Verdict:
    rolls = len(facts.current) < len(facts.live)
    timeout = format_duration(facts.model.spec.startup_timeout)
    told = f"{late.name} is not ready {timeout} after it was made: {_said(late) or 'nothing is known of why'}"
    stays = "; the replicas before the change go on serving; correct the Model, or change it back" if rolls else ""
    reason = "RolloutStalled" if rolls else "StartupTimeout"
    return Verdict("Progressing", "False", reason, told + stays, alarming=True)


def _trouble(pods: Iterable[PodFacts]) -> tuple[str, str]:
    """What hinders the pods, as a word and a line: of a pod that complains, else of one under notice; else nothing."""
    short = [pod for pod in pods if not pod.serving and not pod.draining and pod.phase != "Terminating"]
    pod = min((pod for pod in short if pod.reason), key=_telling, default=None)
    if pod is not None:
        return _word(pod.reason), f"{pod.name}: {_said(pod)}"
    leaving = next((pod for pod in short if pod.notice), None)
    if leaving is None or leaving.notice is None:
        return "", ""
    notice = leaving.notice
    return _word(notice.reason), f"{leaving.name} has to go and is being replaced: {notice.message or notice.reason}"


def _advice(pods: Iterable[PodFacts]) -> str:
    """A pod that the cloud may take soon, as it says; nothing is done about that unless it is configured."""
    return next((f"{pod.name} may have to go soon: {pod.advice}" for pod in pods if pod.advice), "")


def _mute(pods: Iterable[PodFacts]) -> str:
    """A pod that serves and takes over from none, because nobody knows what it holds."""
    name = next((pod.name for pod in pods if pod.serving and pod.agent is None), "")
    return f"{name}: its agent cannot be reached; see whether a network policy keeps the operator away" if name else ""


def _telling(pod: PodFacts) -> tuple[bool, bool, bool, str]:
    """Which pod says best what is wrong: one that failed, one that crashed, one with a reason; then by name."""
    return pod.phase != "Failed", pod.restarts == 0, not pod.reason, pod.name


def _said(pod: PodFacts) -> str:
    return pod.message or pod.reason


def _word(reason: str) -> str:
    """The reason as a condition may hold it."""
    kept = "".join(letter for letter in reason if letter.isascii() and letter.isalnum())
    return kept if kept[:1].isalpha() else "PodNotReady"


def _and(text: str, note: str) -> str:
    return f"{text}; {note}" if note else text
