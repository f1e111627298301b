"""Manifests to objects and problems: everything that `sheaf validate` and `sheaf up` say of a user's files.

Each object is judged as the API server would judge it (schema, then rules), then all of them together (`judge`). An
object that is right by itself is kept even where another is broken, so that the rest can be served.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath
from typing import NamedTuple

from sheaf_crds import KINDS
from sheaf_crds.adapter import Adapter
from sheaf_crds.autoscaling import AutoscalingPolicy
from sheaf_crds.base import API_VERSION, NAME_PATTERN
from sheaf_crds.judge import Declared, Key, judge, key_of
from sheaf_crds.meta import KubeObject
from sheaf_crds.model import Model
from sheaf_crds.rules import Finding, Path, Tree, broken_rules
from sheaf_crds.schema import Schema, structural_schema
from sheaf_crds.slo import SLO
from sheaf_crds.structure import defaulted, misfits
from sheaf_crds.words import described, nearest
from sheaf_crds.yaml_tree import Node, YamlProblem, documents

DOCUMENT = "(document)"


class ManifestFile(NamedTuple):
    """A file as it was read; the name is shown in problems."""

    name: str
    content: bytes


class Problem(NamedTuple):
    """One thing that is wrong; its text is one line."""

    file: str
    line: int
    field: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.what}; {self.mend}"


class Surroundings(NamedTuple):
    """What the world outside the files says; each answer is why not, or an empty text. By default nothing is asked."""

    source_problem: Callable[[PurePosixPath], str] = lambda _: ""
    time_zone_problem: Callable[[str], str] = lambda _: ""


@dataclass(frozen=True, slots=True)
class Located:
    """An object and where it stands."""

    item: KubeObject
    file: str
    node: Node

    def problem(self, path: Path, what: str, mend: str) -> Problem:
        """A problem with one of its fields."""
        return Problem(self.file, self.node.line_of(path), field_name(path), what, mend)


@dataclass(frozen=True, slots=True)
class Manifests:
    """What a set of files declares, and everything that is wrong with them, by file and line."""

    located: tuple[Located, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def objects(self) -> tuple[KubeObject, ...]:
        """The objects that are right by themselves, each once."""
        return tuple(located.item for located in self.located)

    def declared(self) -> Declared:
        """The objects by kind."""
        return declared(self.objects)


def declared(objects: Iterable[KubeObject]) -> Declared:
    """Objects of any kind, sorted into their kinds."""
    items = tuple(objects)
    return Declared(
        tuple(item for item in items if isinstance(item, Model)),
        tuple(item for item in items if isinstance(item, Adapter)),
        tuple(item for item in items if isinstance(item, SLO)),
        tuple(item for item in items if isinstance(item, AutoscalingPolicy)),
    )


def field_name(path: Path) -> str:
    """`spec.engine.args[0]`; a name with odd characters is quoted, and nothing at all is the document."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if _is_plain(step) else f"[{_quoted(step)}]"
    return text.removeprefix(".") or DOCUMENT


def _is_plain(step: str) -> bool:
    return step.isascii() and step.replace("-", "").replace("_", "").isalnum() and len(step) <= _LONGEST_STEP


def _quoted(step: str) -> str:
    return repr(step if len(step) <= _LONGEST_STEP else f"{step[: _LONGEST_STEP - 3]}...")


_LONGEST_STEP = 63
_ANYTHING: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT, "maxProperties": 1024}
_METADATA: Schema = {
    "type": "object",
    "properties": {
        "name": {
            **_TEXT,
            "pattern": NAME_PATTERN,
            "minLength": 1,
            "maxLength": 63,
            "description": "the name of the object, which for Models and Adapters is the served name",
        },
        "namespace": {**_TEXT, "pattern": NAME_PATTERN, "minLength": 1, "maxLength": 63},
        "labels": _TEXTS,
        "annotations": _TEXTS,
        # What the API server writes and `kubectl get -o yaml` shows; nothing here reads it.
        **dict.fromkeys(
            (
                "creationTimestamp",
                "deletionGracePeriodSeconds",
                "deletionTimestamp",
                "finalizers",
                "generation",
                "managedFields",
                "ownerReferences",
                "resourceVersion",
                "selfLink",
                "uid",
            ),
            _ANYTHING,
        ),
    },
    "required": ["name"],
}
_READ_METADATA = ("name", "namespace", "labels", "annotations")


@cache
def _manifest_schema(kind: type[KubeObject]) -> Schema:
    """The schema of a kind as users write it: metadata spelt out, status whatever it is, because it is not read."""
    schema = structural_schema(kind)
    properties = schema["properties"] | {"metadata": _METADATA, "status": _ANYTHING}
    return {**schema, "properties": properties, "required": ["metadata", *schema.get("required", ())]}


def _identity(tree: dict[str, Tree]) -> Iterator[Finding]:
    """What is wrong with apiVersion and kind; without them nothing else can be judged."""
    version, kind = tree.get("apiVersion"), tree.get("kind")
    if version is None:
        yield Finding(("apiVersion",), "is missing", f"add apiVersion: {API_VERSION}")
    elif version != API_VERSION:
        mend = f"write {API_VERSION}, or keep objects of other kinds in files of their own"
        yield Finding(("apiVersion",), f"is {described(version)}, which Sheaf does not serve", mend)
    if kind is None:
        yield Finding(("kind",), "is missing", f"add kind: one of {', '.join(KINDS)}")
    elif (version is None or version == API_VERSION) and (not isinstance(kind, str) or kind not in KINDS):
        mend = f"{nearest(str(kind), KINDS)} write one of {', '.join(KINDS)}".strip()
        yield Finding(("kind",), f"is {described(kind)}, which is no kind of {API_VERSION}", mend)


def findings(tree: Tree) -> tuple[Finding, ...]:
    """Everything that is wrong with one object by itself, as the API server would find it."""
    if not isinstance(tree, dict):
        return (Finding((), f"is {described(tree)}, not an object", "begin it with apiVersion, kind and metadata"),)
    identity = tuple(_identity(tree))
    if identity:
        return identity
    kind = KINDS[tree["kind"]]
    wrong = tuple(misfits(_manifest_schema(kind), tree))
    return wrong or tuple(broken_rules(kind.__name__, defaulted(_manifest_schema(kind), {**tree, "status": None})))


def to_object(tree: dict[str, Tree]) -> KubeObject:
    """The object of a tree without findings."""
    kind = KINDS[tree["kind"]]
    whole = defaulted(_manifest_schema(kind), {**tree, "status": None})
    metadata = {name: value for name, value in whole["metadata"].items() if name in _READ_METADATA}
    return kind.model_validate({**whole, "metadata": metadata})


@dataclass(slots=True)
class _Reading:
    """What was found so far."""

    located: dict[Key, Located] = field(default_factory=dict)
    broken: set[Key] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    def read(self, file: ManifestFile) -> None:
        """Take every document of a file, until one cannot be read."""
        try:
            for node in documents(file.content):
                self._take(file.name, node)
        except YamlProblem as problem:
            self.problems.append(Problem(file.name, problem.line, DOCUMENT, problem.what, problem.mend))

    def _take(self, file: str, node: Node) -> None:
        tree = node.plain()
        wrong = findings(tree)
        if wrong:
            places = (Problem(file, node.line_of(f.path), field_name(f.path), f.what, f.mend) for f in wrong)
            self.problems.extend(places)
            self.broken.add(_claimed_key(tree))
        else:
            self._keep(Located(to_object(tree), file, node))

    def _keep(self, located: Located) -> None:
        key = key_of(located.item)
        first = self.located.setdefault(key, located)
        if first is not located:
            place = f"{first.file}:{first.node.line}"
            what = f"{key[0]} {key[2]} is declared in {place} already"
            self.problems.append(located.problem(("metadata", "name"), what, "remove or rename one of them"))

    def judge_together(self) -> Iterator[Problem]:
        """What is wrong between the objects."""
        order = {key: index for index, key in enumerate(self.located)}
        objects = declared(located.item for located in self.located.values())
        for verdict in judge(objects, self.broken, age=lambda item: order[key_of(item)]):
            yield self.located[verdict.key].problem(verdict.path, verdict.what, verdict.mend)


def _claimed_key(tree: Tree) -> Key:
    """What a broken object calls itself, so that references to it are not called dangling too."""
    metadata = tree.get("metadata") if isinstance(tree, dict) else None
    named = metadata if isinstance(metadata, dict) else {}
    kind = tree.get("kind") if isinstance(tree, dict) else None
    return str(kind), str(named.get("namespace") or "default"), str(named.get("name"))


def _outside(located: Located, surroundings: Surroundings) -> Iterator[Problem]:
    """What is wrong with an object because of the world outside."""
    item = located.item
    if isinstance(item, (Model, Adapter)) and item.spec.source.startswith("file://"):
        why = surroundings.source_problem(PurePosixPath(item.spec.source.removeprefix("file://")))
        if why:
            yield located.problem(("spec", "source"), why, "correct the path or put the files there")
    if isinstance(item, AutoscalingPolicy):
        for index, window in enumerate(item.spec.schedules):
            why = surroundings.time_zone_problem(window.time_zone)
            if why:
                path = ("spec", "schedules", index, "timeZone")
                yield located.problem(path, why, "write the name of an IANA time zone, such as Europe/Berlin")


def parse(files: Iterable[ManifestFile], surroundings: Surroundings | None = None) -> Manifests:
    """The objects that the files declare and every problem with them, by file in the order given and by line."""
    reading, order = _Reading(), dict[str, int]()
    for file in files:
        order.setdefault(file.name, len(order))
        reading.read(file)
    outside = (p for one in reading.located.values() for p in _outside(one, surroundings or Surroundings()))
    problems = (*reading.problems, *reading.judge_together(), *outside)
    by_place = sorted(problems, key=lambda problem: (order[problem.file], problem.line))
    return Manifests(tuple(reading.located.values()), tuple(by_place))
