"""Why an adapter is not served: one word for programs and one sentence for people.

The reasons are documented in docs/adapters.md. Reasons in `LASTING` are verdicts about the content or the
declaration: trying again soon cannot help, so the next attempt waits for the longest back-off (the content behind a
URL may still be mended).
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why an adapter could not be fetched, accepted or loaded."""

    SOURCE_REFUSED = "SourceRefused"
    SOURCE_NOT_FOUND = "SourceNotFound"
    SOURCE_DENIED = "SourceDenied"
    SOURCE_UNREACHABLE = "SourceUnreachable"
    SIZE_LIMIT_EXCEEDED = "SizeLimitExceeded"
    DISK_FULL = "DiskFull"
    FILES_MISSING = "FilesMissing"
    NOT_A_REGULAR_FILE = "NotARegularFile"
    PICKLED_WEIGHTS = "PickledWeights"
    BAD_CONFIG = "BadConfig"
    BAD_WEIGHTS = "BadWeights"
    UNSUPPORTED_FEATURE = "UnsupportedFeature"
    WRONG_BASE = "WrongBase"
    RANK_MISMATCH = "RankMismatch"
    RANK_TOO_HIGH = "RankTooHigh"
    DIGEST_MISMATCH = "DigestMismatch"
    NAME_TAKEN = "NameTaken"
    CAPACITY_EXCEEDED = "CapacityExceeded"
    ENGINE_REFUSED = "EngineRefused"
    ENGINE_UNREACHABLE = "EngineUnreachable"
    AGENT_ERROR = "AgentError"


PASSING = frozenset(
    {Reason.SOURCE_UNREACHABLE, Reason.DISK_FULL, Reason.ENGINE_REFUSED, Reason.ENGINE_UNREACHABLE, Reason.AGENT_ERROR}
)
LASTING = frozenset(Reason) - PASSING


class AdapterError(Exception):
    """An adapter (or a model's files) cannot be had or may not be used."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    @property
    def lasting(self) -> bool:
        """Whether trying again soon is pointless."""
        return self.reason in LASTING


class CallError(Exception):
    """A call to the agent that cannot be answered as asked: HTTP status, snake_case code, what is wrong."""

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after


class ConfigError(Exception):
    """The agent's own configuration is wrong; the message is one line for the person who wrote it."""
