"""The rules that span several fields, each written once, in CEL.

The same text goes into the CRD as `x-kubernetes-validations`, where the API server evaluates it, and is evaluated here
by a CEL library, so that `sheaf validate` and the operator refuse exactly what the API server refuses. A rule sees an
object that fits the structural schema and has its defaults. `self` is the node at the rule's path; `*` is every item.

No rule looks at the old object: every field may change at any time, and no mistake needs a delete to be mended.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from sheaf_crds.rules.autoscaling import AUTOSCALING
from sheaf_crds.rules.model import MODEL, OWNED_ENV, OWNED_ENV_PREFIX, OWNED_FLAGS
from sheaf_crds.rules.naming import NAMES, SIZES, SOURCES
from sheaf_crds.rules.rule import Finding, Path, Rule, Tree
from sheaf_crds.rules.slo import SLO

if TYPE_CHECKING:
    from cel import Program

RULES = (*NAMES, *SOURCES, *SIZES, *MODEL, *SLO, *AUTOSCALING)


@cache
def _rules_of(kind: str) -> tuple[Rule, ...]:
    return tuple(rule for rule in RULES if kind in rule.kinds)


def rules_at(kind: str, path: tuple[str, ...]) -> tuple[Rule, ...]:
    """The rules of a kind that hold at one node of its schema."""
    return tuple(rule for rule in _rules_of(kind) if rule.path == path)


@cache
def _program(text: str) -> "Program":
    cel = import_module("cel")  # not at the top: it loads a command line of its own, and only who judges should pay
    program: Program = cel.compile(text)
    return program


def _nodes(tree: Tree, steps: tuple[str, ...], at: Path = ()) -> Iterator[tuple[Path, Tree]]:
    """Every node of the tree that the steps of a rule reach, with its path."""
    if not steps:
        yield at, tree
    elif steps[0] == "*":
        for index, item in enumerate(tree):
            yield from _nodes(item, steps[1:], (*at, index))
    elif steps[0] in tree:
        yield from _nodes(tree[steps[0]], steps[1:], (*at, steps[0]))


def broken_rules(kind: str, tree: Mapping[str, Tree]) -> Iterator[Finding]:
    """The rules that an object breaks; it must fit the schema of its kind and have its defaults."""
    for rule in _rules_of(kind):
        field = tuple(rule.field.split(".")) if rule.field else ()
        for at, node in _nodes(tree, rule.path):
            if not _program(rule.cel).execute({"self": node}):
                yield Finding((*at, *field), rule.what, rule.mend)


__all__ = [
    "OWNED_ENV",
    "OWNED_ENV_PREFIX",
    "OWNED_FLAGS",
    "RULES",
    "Finding",
    "Path",
    "Rule",
    "Tree",
    "broken_rules",
    "rules_at",
]
