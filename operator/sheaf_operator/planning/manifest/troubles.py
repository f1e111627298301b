"""What hinders a pod, in a word and in a line with the mend, read from the statuses of its containers."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sheaf_operator.planning.manifest.containers import AGENT, ENGINE, FETCH
from sheaf_operator.planning.manifest.wire import count, items, section, text

LONGEST = 600
STARTS_SLOWLY = 60.0
_ERROR = re.compile(r"\b[A-Za-z_.]*(?:Error|Exception|Interrupt)\b: .+")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x1f\x7f-\x9f]+")
_PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "RegistryUnavailable",
                   "ImageInspectError", "SignatureValidationFailed"})  # fmt: skip
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_PULL_MEND = "correct the image (spec.engine.image or the chart's images), the registry's credentials or its name"
_CONFIG_MEND = "create what is missing, or correct the chart's value that names it"
_MEMORY_MEND = {
    ENGINE: "raise the engine's memory limit in the chart's resources, or lower --max-model-len or the KV cache",
    AGENT: "raise the agent's memory limit in the chart's resources",
    FETCH: "raise the fetch's memory limit in the chart's resources",
}
_LOGS = "its log says more"
_BACK_OFF = "CrashLoopBackOff"
_PAUSE = "it is started again after a pause (the kubelet's back-off)"


@dataclass(frozen=True, slots=True)
class Trouble:
    """A word for programs and a line for people; both empty where nothing hinders the pod."""

    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Container:
    """A container's status: its name, image, states now and before, and the limit of its memory."""

    name: str
    image: str
    waiting: Mapping[str, Any]
    ended: Mapping[str, Any]
    memory: str

    @property
    def why(self) -> str:
        """The reason for which it waits."""
        return text(self.waiting, "reason")


def container_trouble(pod: Mapping[str, Any]) -> Trouble:
    """The first trouble of the pod's containers, in the order in which they start."""
    found = (_trouble(container) for container in _containers(pod))
    return next((trouble for trouble in found if trouble.reason), Trouble())


def backs_off(status: Mapping[str, Any]) -> bool:
    """Whether a container waits in the kubelet's back-off, whatever it ended of (`status`: of containerStatuses)."""
    return text(section(status, "state", "waiting"), "reason") == _BACK_OFF


def last_words(message: str) -> str:
    """The line of a program's last output that tells best why it ended; empty where none does.

    An engine of several processes ends with `See root cause above`, which is not the cause.
    """
    lines = _lines(message)
    return named_error(message) or next((line for line in reversed(lines) if "root cause" not in line), "")


def named_error(message: str) -> str:
    """The last error that a program named in its output; empty where it named none."""
    matches = (_ERROR.search(line) for line in reversed(_lines(message)) if "root cause" not in line)
    return next((match[0] for match in matches if match), "")


def clean(line: str) -> str:
    """A line of somebody's output, fit for conditions and terminals: no control sequences, and short."""
    return shorten(" ".join(_CONTROL.sub(" ", line).split()).removeprefix("error: "))


def _lines(message: str) -> list[str]:
    return [line for line in map(clean, message.splitlines()) if line]


def shorten(message: str) -> str:
    """At most so many characters as a condition reads well with."""
    return message if len(message) <= LONGEST else f"{message[: LONGEST - 3]}..."


def _containers(pod: Mapping[str, Any]) -> Iterator[Container]:
    specs = {text(spec, "name"): spec for kind in ("initContainers", "containers") for spec in items(pod, "spec", kind)}
    for kind in ("initContainerStatuses", "containerStatuses"):
        for status in items(pod, "status", kind):
            if not status.get("ready"):
                yield _container(status, specs.get(text(status, "name"), {}))


def _container(status: Mapping[str, Any], spec: Mapping[str, Any]) -> Container:
    waiting = section(status, "state", "waiting")
    ended = section(status, "state", "terminated") or section(status, "lastState", "terminated")
    failed = count(ended, "exitCode") or text(ended, "reason") not in ("", "Completed")
    return Container(
        text(status, "name"),
        text(spec, "image") or text(status, "image"),
        waiting,
        ended if failed or backs_off(status) else {},
        text(section(spec, "resources", "limits"), "memory"),
    )


def _trouble(container: Container) -> Trouble:
    if container.why in _PULL:
        return Trouble(container.why, f"image {container.image}: {_said(container)}; {_PULL_MEND}")
    if container.why in _CONFIG:
        return Trouble(container.why, f"container {container.name}: {_said(container)}; {_CONFIG_MEND}")
    return _ended(container) if container.ended else Trouble()


def _said(container: Container) -> str:
    return shorten(" ".join(text(container.waiting, "message").split())) or container.why


def _ended(container: Container) -> Trouble:
    if text(container.ended, "reason") == "OOMKilled":
        limit = f" (its limit is {container.memory})" if container.memory else ""
        mend = _MEMORY_MEND.get(container.name, "raise its memory limit")
        what = f"container {container.name} needed more memory than it may use{limit}; {mend}"
        return Trouble("OOMKilled", f"{what}; {_PAUSE}" if container.why == _BACK_OFF else what)
    how = _how(container.ended)
    said = text(container.ended, "message")
    words = named_error(said) if "signal" in how else last_words(said)
    if container.name == FETCH:
        return Trouble("FetchFailed", f"the model cannot be fetched: {words or how}")
    reason = _BACK_OFF if container.why == _BACK_OFF else f"{container.name.capitalize()}Ended"
    what = f"container {container.name} ended with {how}"
    return Trouble(reason, f"{what}: {words}" if words else f"{what}; {_LOGS}")


def _how(ended: Mapping[str, Any]) -> str:
    code, number = count(ended, "exitCode"), count(ended, "signal")
    if number or code > 128:
        return f"signal {number or code - 128} (killed, perhaps because it did not answer its probes)"
    return f"status {code}"
