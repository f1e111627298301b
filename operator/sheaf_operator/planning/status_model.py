"""What is said of a Model: how many of its pods serve, what hinders the others, whether a change is under way."""

from collections.abc import Sequence
from dataclasses import dataclass

from sheaf_crds import Model, ModelStatus

from sheaf_operator.planning.conditions import Verdict, conditions
from sheaf_operator.planning.refs import Finding
from sheaf_operator.planning.snapshot import PodFacts
from sheaf_operator.planning.template import Desired, template_hash

MODEL_LABEL = "sheaf.dev/model"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a Model's status is computed from."""

    model: Model
    desired: Desired
    pods: Sequence[PodFacts]
    adapters: int
    finding: Finding | None = None
    settings_digest: str = ""

    @property
    def serving(self) -> int:
        """Pods that answer requests."""
        return sum(pod.serving for pod in self.pods)


def model_status(facts: ModelFacts, now: float) -> tuple[ModelStatus, Verdict]:
    """The status to store, and the verdict on Ready in it."""
    model = facts.model
    ready = _ready(facts)
    verdicts = (ready, _available(facts), _progressing(facts))
    generation = model.metadata.generation
    status = ModelStatus(
        observed_generation=generation,
        conditions=conditions(model.status, verdicts, generation, now),
        replicas=sum(pod.phase != "Terminating" for pod in facts.pods),
        ready_replicas=facts.serving,
        selector=f"{MODEL_LABEL}={model.name}",
        adapters=facts.adapters,
    )
    return status, ready


def _ready(facts: ModelFacts) -> Verdict:
    if facts.finding:
        return Verdict("Ready", "False", facts.finding.reason, facts.finding.message, alarming=True)
    if not facts.desired.replicas:
        return Verdict("Ready", "True", "ScaledToZero", "no replicas are wanted")
    count = _and(f"{facts.serving} of {facts.desired.replicas} replicas ready", facts.desired.note)
    if facts.serving >= facts.desired.replicas:
        return Verdict("Ready", "True", "Serving", count)
    trouble = _trouble(facts.pods)
    if trouble is None:
        return Verdict("Ready", "False", "Starting", count)
    said = trouble.message or trouble.reason
    return Verdict("Ready", "False", _word(trouble.reason), f"{count}; {trouble.name}: {said}", alarming=True)


def _available(facts: ModelFacts) -> Verdict:
    if facts.serving:
        return Verdict("Available", "True", "Serving", "at least one replica serves")
    reason = "Starting" if facts.desired.replicas else "ScaledToZero"
    return Verdict("Available", "False", reason, "no replica serves")


def _progressing(facts: ModelFacts) -> Verdict:
    wanted = template_hash(facts.model, facts.settings_digest)
    live = [pod for pod in facts.pods if pod.live]
    current = sum(pod.template_hash == wanted for pod in live)
    if current < len(live):
        return Verdict(
            "Progressing", "True", "RollingUpdate", f"{current} of {len(live)} replicas run the new template"
        )
    if len(facts.pods) != facts.desired.replicas:
        return Verdict("Progressing", "True", "Scaling", f"{facts.desired.replicas} replicas are wanted")
    if facts.serving < facts.desired.replicas:
        return Verdict("Progressing", "True", "Starting", "replicas are starting")
    return Verdict("Progressing", "False", "Complete", "nothing is left to do")


def _trouble(pods: Sequence[PodFacts]) -> PodFacts | None:
    """The pod that says what is wrong: one that fails before one that waits, then by name."""
    complaining = [pod for pod in pods if not pod.serving and pod.reason and not pod.draining]
    return min(complaining, key=lambda pod: (pod.phase != "Failed", -pod.restarts, pod.name), default=None)


def _word(reason: str) -> str:
    """The reason as a condition may hold it."""
    kept = "".join(letter for letter in reason if letter.isascii() and letter.isalnum())
    return kept if kept[:1].isalpha() else "PodNotReady"


def _and(text: str, note: str) -> str:
    return f"{text}; {note}" if note else text
