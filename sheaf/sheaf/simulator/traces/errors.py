"""What is wrong with a trace, in one line: FILE:LINE: what; how to mend it."""


class TraceError(Exception):
    """A trace that cannot be used."""

    def __init__(self, path: object, line: int, what: str, remedy: str) -> None:
        where = f"{path}:{line}" if line else str(path)
        super().__init__(f"{where}: {what}; {remedy}")
