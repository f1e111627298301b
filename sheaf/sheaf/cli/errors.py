"""How every command fails: one line on standard error, and an exit code."""


class CliError(Exception):
    """What went wrong and what to do, in one line."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(" ".join(message.split()))
        self.code = code
