"""Counts as people write them."""


def counted(number: int, noun: str) -> str:
    """The number with its noun: 1 replica, 2 replicas."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def share(part: int, whole: int, noun: str) -> str:
    """So many of so many: 0 of 1 replica, 1 of 2 replicas."""
    return f"{part} of {counted(whole, noun)}"


def are(number: int) -> str:
    """The verb that goes with a number."""
    return "is" if number == 1 else "are"
