"""kopf's memories of handled changes, left empty: nothing is handled by kopf, and building them costs time."""

from typing import Any

import kopf


class NoDiff(kopf.DiffBaseStorage):
    """No last-handled configuration."""

    def build(self, **_: Any) -> Any:
        """Nothing of the object is compared."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """Nothing is stored."""
        return None

    def store(self, **_: Any) -> None:
        """Nothing is stored."""


class NoProgress(kopf.ProgressStorage):
    """No progress of handlers."""

    def fetch(self, **_: Any) -> Any:
        """Nothing is stored."""
        return None

    def store(self, **_: Any) -> None:
        """Nothing is stored."""

    def purge(self, **_: Any) -> None:
        """Nothing is stored."""

    def touch(self, **_: Any) -> None:
        """Nothing is touched."""

    def clear(self, *, essence: Any) -> Any:
        """There is nothing to clear."""
        return essence
