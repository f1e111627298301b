"""YAML text to plain trees that know the line of every field.

It reads the parser's events itself, so that nothing in a file can build an object, recurse without end or grow out
of bounds: tags, merge keys and duplicate keys are refused, aliases count as often as they are used. Plain scalars mean
what they mean to kubectl (YAML 1.1 as its library reads it), not what they mean to PyYAML: `10:30` and a date are text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, cast

import yaml

from sheaf_crds.rules import Path, Tree

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_NODES = 250_000

Scalar: TypeAlias = str | int | float | bool | None


class YamlProblem(Exception):  # noqa: N818 - it is a finding about a file, not an error of the program
    """Why a text is not taken, and from which line (counted from 1)."""

    def __init__(self, line: int, what: str, mend: str) -> None:
        super().__init__(f"{line}: {what}; {mend}")
        self.line, self.what, self.mend = line, what, mend


class Entry(NamedTuple):
    """One field of a mapping: the line of its name, and its value."""

    line: int
    node: "Node"


@dataclass(slots=True)
class Node:
    """One value with the line where it begins.

    `weight` counts it and everything below it, aliases as often as they are used; `height` is how deep it goes.
    """

    line: int
    scalar: Scalar = None
    items: "list[Node] | None" = None
    fields: dict[str, Entry] | None = None
    weight: int = 1
    height: int = 0

    def plain(self) -> Tree:
        """The value as JSON has it."""
        if self.fields is not None:
            return {name: entry.node.plain() for name, entry in self.fields.items()}
        if self.items is not None:
            return [item.plain() for item in self.items]
        return self.scalar

    def line_of(self, path: Path) -> int:
        """The line of the field at that path, or of the last field on the way to it that is there."""
        node, line = self, self.line
        for step in path:
            if node.fields is not None and step in node.fields:
                line, node = node.fields[str(step)]
            elif node.items is not None and isinstance(step, int) and step < len(node.items):
                node = node.items[step]
                line = node.line
            else:
                break
        return line


@dataclass(slots=True)
class _Open:
    """A collection that is being read."""

    node: Node
    anchor: str | None
    key: str | None = None
    key_line: int = 0


_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE = frozenset(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"))
_FALSE = frozenset(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"))
_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0[bB][01]+|0|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_INFINITE = re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))", re.ASCII)
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_INTEGER_DIGITS = 300


def _integer(text: str) -> int:
    sign, digits = (-1 if text[0] == "-" else 1), text.lstrip("+-").lower()
    octal = digits[0] == "0" and digits[1:].isdigit()
    return sign * (int(digits, 8) if octal else int(digits, 0))


def resolve(text: str) -> Scalar:
    """What a plain scalar means; endless integers become infinite."""
    if text in _NULLS:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    number = text.replace("_", "") if text[:1] in "+-.0123456789" else ""
    if _INTEGER.fullmatch(number) and len(number) <= _INTEGER_DIGITS:
        return _integer(number)
    if _FLOAT.fullmatch(number):
        return float(number)
    return float(number.lower().replace(".", "")) if _INFINITE.fullmatch(number) else text


def _decoded(data: bytes) -> str:
    """The text of a file, or why it is none."""
    if len(data) > MAX_BYTES:
        raise YamlProblem(1, f"the file is larger than {MAX_BYTES // 2**20} MiB", "split it into several files")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise YamlProblem(line, "the file is not UTF-8 text", "save it as UTF-8") from None
    found = _UNPRINTABLE.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise YamlProblem(line, f"there is an unprintable character ({found[0]!a})", "remove it or write it escaped")
    return text


class _Reader:
    """Builds one document after the other from the parser's events."""

    def __init__(self) -> None:
        self.weight = 0
        self.open: list[_Open] = []
        self.anchors: dict[str, Node] = {}
        self.root: Node | None = None

    def take(self, event: yaml.Event) -> Node | None:
        """The root of a document, when the event ends one."""
        match event:
            case yaml.NodeEvent():
                self._begin(event, event.start_mark.line + 1 if event.start_mark else 1)
            case yaml.CollectionEndEvent():
                done = self.open.pop()
                self._place(done.node, done.anchor)
            case yaml.DocumentEndEvent():
                root, self.root, self.anchors = self.root, None, {}
                return root
        return None

    def _begin(self, event: yaml.NodeEvent, line: int) -> None:
        if getattr(event, "tag", None) is not None:
            raise YamlProblem(line, "there is a tag (!)", "remove it; put a value in quotes to make it text")
        match event:
            case yaml.AliasEvent():
                self._place(self._aliased(event.anchor, line), None)
            case yaml.ScalarEvent():
                _refuse_surrogates(event.value, line)
                value = event.value if event.style else resolve(event.value)
                self._place(Node(line, value), event.anchor, event)
            case yaml.SequenceStartEvent():
                self._descend(Node(line, items=[]), event.anchor)
            case _:
                self._descend(Node(line, fields={}), event.anchor)

    def _aliased(self, anchor: str | None, line: int) -> Node:
        node = self.anchors.get(anchor or "")
        if node is None:
            what = "an alias (*) names no anchor (&) that is complete before it"
            raise YamlProblem(line, what, "write the value out")
        return node

    def _descend(self, node: Node, anchor: str | None) -> None:
        self.open.append(_Open(node, anchor))
        self._bound(node, 0)

    def _bound(self, node: Node, more: int) -> None:
        self.weight += more
        if self.weight > MAX_NODES:
            raise YamlProblem(node.line, f"the file holds more than {MAX_NODES} values", "split it into several files")
        if len(self.open) + node.height > MAX_DEPTH:
            raise YamlProblem(node.line, f"the nesting is deeper than {MAX_DEPTH} levels", "write it flatter")

    def _place(self, node: Node, anchor: str | None, event: yaml.ScalarEvent | None = None) -> None:
        """Put a complete value where it belongs: into the collection that is open, as its next key, or as the root."""
        alias = anchor is None and event is None
        self._bound(node, node.weight if alias else 1)
        if anchor is not None:
            self.anchors[anchor] = node
        if not self.open:
            self.root = node
            return
        top = self.open[-1]
        if top.node.fields is not None and top.key is None:
            top.key, top.key_line = _key(node, event, top.node.fields), node.line
            return
        top.node.weight += node.weight
        top.node.height = max(top.node.height, node.height + 1)
        if top.node.fields is not None:
            top.node.fields[cast("str", top.key)] = Entry(top.key_line, node)
            top.key = None
        else:
            cast("list[Node]", top.node.items).append(node)


def _refuse_surrogates(text: str, line: int) -> None:
    if _SURROGATE.search(text):
        raise YamlProblem(line, "an escape names half a character (a surrogate)", "write the character itself")


def _key(node: Node, event: yaml.ScalarEvent | None, fields: dict[str, Entry]) -> str:
    if event is None or (node.scalar is None and not event.style):
        raise YamlProblem(node.line, "the name of a field is not text", "write a plain name before the colon")
    if event.value == "<<" and not event.style:
        raise YamlProblem(node.line, "merge keys (<<) are not read", "write the fields out")
    name: str = event.value
    if name in fields:
        above = fields[name].line
        raise YamlProblem(node.line, f"the field {name!a} stands in line {above} already", "remove one of them")
    return name


def documents(data: bytes) -> Iterator[Node]:
    """Every document of a file that is not empty; raises YamlProblem at the first place that cannot be read."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text, reader = _decoded(data), _Reader()
    try:
        for event in yaml.parse(text, Loader=loader):
            root = reader.take(event)
            if root is not None and (root.scalar is not None or root.items is not None or root.fields is not None):
                yield root
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter from escapes beyond Unicode
        mark = getattr(error, "problem_mark", None)
        what = f"the text is not YAML: {getattr(error, 'problem', None) or 'an escape names no character'}"
        raise YamlProblem(mark.line + 1 if mark else 1, what, _SYNTAX_HINT) from None


_SYNTAX_HINT = "mend the indentation, quotes or brackets there"
