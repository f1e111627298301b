"""API keys: only their sha256 is held, and the tenant comes from the key alone.

    keys:
      - name: ci
        tenant: gold
        sha256: 64 hexadecimal digits of the key's sha256
        scopes: [inference]            # inference, admin; default: inference
        models: [smollm2, pirate]      # served names; left out: all
        limits: {requestsPerMinute: 600, tokensPerMinute: 100000, maxConcurrent: 8}
        class: Batch                   # lets everybody else go first; left out: as the SLO says

Keys of one name share its limits, so they must say the same ones, for the same tenant.

Half of a caller's digest finds the entry and the whole is compared in constant time: timing tells nothing of a key.
Thousands of keys are best written as JSON, which is read seven times as fast as YAML.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec
import orjson
import yaml
from pydantic import Field, ValidationError
from sheaf_crds import ApiType

from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.fleet.view import Rate

MAX_BYTES = 16 * 2**20
MAX_KEY = 512

Scope = Literal["inference", "admin"]


class KeyLimits(ApiType):
    """Bounds of one key; those left out do not bound."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    max_concurrent: int | None = Field(default=None, ge=1)


class KeyEntry(ApiType):
    """One key of the file."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    tenant: Annotated[str, Field(min_length=1, max_length=128)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...] = ("inference",)
    models: tuple[str, ...] | None = None
    limits: KeyLimits = Field(default_factory=KeyLimits)
    class_: Literal["Interactive", "Batch"] = Field(default="Interactive", alias="class")


class KeyFile(ApiType):
    """The whole file."""

    keys: Annotated[tuple[KeyEntry, ...], Field(max_length=100_000)]


class Caller(msgspec.Struct, frozen=True):
    """Who asks. `models` None means every model; without keys everyone is the same caller, who may do all. `batch`
    says that the key's requests let Interactive ones go first."""

    name: str = ""
    tenant: str = ""
    scopes: frozenset[str] = frozenset({"inference", "admin"})
    models: frozenset[str] | None = None
    limits: Rate = Rate()
    batch: bool = False

    def require(self, scope: Scope) -> None:
        """Raise `ApiError` 403 where the key lacks the scope."""
        if scope not in self.scopes:
            raise ApiError(403, "insufficient_scope", f"This API key does not have the scope `{scope}`.")

    def may_use(self, served: str) -> bool:
        """Whether the key may use the served name."""
        return self.models is None or served in self.models


ANYONE = Caller()

Held = tuple[bytes, Caller]
Headers = Callable[[bytes], bytes | None]

_BUCKET = 16
_MAX_DEPTH = 32
_MAX_SAID = 512
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOT_YAML = (yaml.YAMLError, ValueError, IndexError, KeyError, AttributeError, TypeError, OverflowError, RecursionError)
_NOBODY: Held = (bytes(32), Caller(scopes=frozenset()))


class KeyRing:
    """The keys in force; None: no key is asked for."""

    def __init__(self, callers: Mapping[bytes, Held] | None = None) -> None:
        self._callers = callers

    def caller(self, header: Headers) -> Caller:
        """Who a request comes from; `header` looks a header up by its lower-case name.

        Raises:
            ApiError: 401 without a valid key, where keys are configured.
        """
        if self._callers is None:
            return ANYONE
        key = _presented(header)
        digest = hashlib.sha256(key).digest()
        held, caller = self._callers.get(digest[:_BUCKET], _NOBODY)
        if not hmac.compare_digest(digest, held):
            raise _unauthorized("The API key is not valid.")
        return caller


def read_keys(text: bytes) -> KeyRing:
    """The key ring of a YAML or JSON file.

    Raises:
        ValueError: The file is not one of keys; the message names the field.
    """
    document = _document(text)
    try:
        entries = KeyFile.model_validate(document).keys
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise ValueError(f"{where}: {first['msg']}") from None
    return KeyRing(_callers(entries))


def _document(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        _check_depth(text)
        return yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe loader
    except _NOT_YAML as error:
        raise ValueError(f"not valid YAML or JSON: {' '.join(str(error).split())[:_MAX_SAID]}") from None


def _check_depth(text: bytes) -> None:
    """Refuse what nests deeper than libyaml's composer has stack for."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise ValueError(f"it nests deeper than {_MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _callers(entries: tuple[KeyEntry, ...]) -> dict[bytes, Held]:
    callers: dict[bytes, Held] = {}
    named: dict[str, Caller] = {}
    for position, entry in enumerate(entries):
        digest = bytes.fromhex(entry.sha256)
        if digest[:_BUCKET] in callers:
            raise ValueError(f"keys.{position}.sha256: the same key is listed twice")
        caller = _caller(entry)
        _check_shared(position, caller, named.setdefault(entry.name, caller))
        callers[digest[:_BUCKET]] = digest, caller
    return callers


def _check_shared(position: int, caller: Caller, first: Caller) -> None:
    """Refuse keys of one name, and so of one account, that do not say the same limits for the same tenant."""
    if caller.limits != first.limits:
        raise ValueError(
            f"keys.{position}.limits: another key with the name {caller.name!r} has other limits; keys of one name "
            "share them: give all of them the same, or this one another name"
        )
    if caller.tenant != first.tenant and caller.limits != Rate():
        raise ValueError(
            f"keys.{position}.tenant: another key with the name {caller.name!r} has another tenant; keys of one name "
            "share their limits: give this one another name"
        )


def _caller(entry: KeyEntry) -> Caller:
    limits = Rate(**entry.limits.model_dump())
    models = None if entry.models is None else frozenset(entry.models)
    return Caller(entry.name, entry.tenant, frozenset(entry.scopes), models, limits, entry.class_ == "Batch")


def _presented(headers: Headers) -> bytes:
    header = headers(b"authorization")
    if header is not None:
        scheme, _, key = header.partition(b" ")
        key = key.strip() if scheme.lower() == b"bearer" else b""
    else:
        key = headers(b"x-api-key") or b""
    if not key:
        raise _unauthorized("An API key is required: send `Authorization: Bearer KEY`.")
    if len(key) > MAX_KEY:
        raise _unauthorized("The API key is not valid.")
    return key


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, "invalid_api_key", message, headers=((b"www-authenticate", b"Bearer"),))
