"""How far a long piece of work has come: `stage` names it, `fraction` goes from 0 to 1."""

from typing import Protocol


class Progress(Protocol):
    """Called whenever a stage gets on."""

    def __call__(self, stage: str, fraction: float, /) -> None:
        """Take note of how far the stage is."""
        ...


def silent(stage: str, fraction: float, /) -> None:
    """Nobody watches."""
