"""What a rule is, and what comes out when an object breaks one."""

from typing import Any, NamedTuple, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
# A JSON value: what a manifest or the API server holds before it is parsed into a type.
Tree: TypeAlias = Any


class Rule(NamedTuple):
    """One rule: where it holds, what must be true there, and what to tell whoever breaks it."""

    kinds: tuple[str, ...]
    path: tuple[str, ...]
    cel: str
    what: str
    mend: str
    field: str = ""

    @property
    def message(self) -> str:
        """One line for people."""
        return f"{self.what}; {self.mend}"


class Finding(NamedTuple):
    """What is wrong with one field of an object, and how to mend it."""

    path: Path
    what: str
    mend: str
