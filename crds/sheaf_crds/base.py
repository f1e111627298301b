"""The base of every API type, and the scalar types with units.

A user writes durations (`800ms`, `5m`) and sizes (`512Mi`) as Kubernetes users expect; code reads plain numbers:
seconds as `float`, bytes as `int`. Both serialise back to the text form, so that an object survives a round trip
through the API server. Unknown fields are refused: a misspelt field must never be a silent default.
"""

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel

GROUP = "sheaf.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
SUBDOMAIN_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
DURATION_PATTERN = (
    r"^([0-9]{1,6}(\.[0-9]{1,3})?h)?([0-9]{1,6}(\.[0-9]{1,3})?m)?"
    r"([0-9]{1,6}(\.[0-9]{1,3})?s)?([0-9]{1,9}(\.[0-9]{1,3})?ms)?$"
)
SIZE_PATTERN = r"^[0-9]{1,15}(\.[0-9]{1,3})?(Ki|Mi|Gi|Ti|k|M|G|T)?$"

# How a person writes a value that fits the pattern: what the API server can only answer with the pattern itself.
PATTERN_HINTS = {
    NAME_PATTERN: "write lower-case letters, digits and '-', such as llama-3-8b",
    DIGEST_PATTERN: "write sha256: and 64 hexadecimal digits, as `sheaf digest DIR` prints them",
    DURATION_PATTERN: "write a number with a unit, such as 800ms, 30s, 5m or 1h30m",
    SIZE_PATTERN: "write a number with a unit, such as 512Mi or 4Gi",
}

_LONGEST = 999_999 * 3600.0
_NANOSECONDS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_BYTES = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


class ApiType(BaseModel):
    """An immutable piece of the API, camelCase on the wire."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, ser_json_inf_nan="null"
    )

    def to_wire(self) -> dict[str, Any]:
        """The JSON form that the API server holds: camelCase, nulls left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _nanoseconds(text: str) -> int:
    parts = re.findall(r"([0-9.]+)(ms|s|m|h)", text)
    return sum(int(Decimal(number) * _NANOSECONDS[unit]) for number, unit in parts)


def parse_duration(value: object) -> float:
    """Seconds in a text such as `800ms`, `1m30s`; a number is taken as seconds (the form that code holds).

    Texts of the same length give the same number (0.3s and 300ms), as in CEL, which counts in nanoseconds.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LONGEST:
        return float(value)
    if not isinstance(value, str) or not value or not re.fullmatch(DURATION_PATTERN, value):
        raise ValueError(f"{value!r} is not a duration; {PATTERN_HINTS[DURATION_PATTERN]}")
    return _nanoseconds(value) / 10**9


def format_duration(seconds: float) -> str:
    """The text of a duration in seconds, exact to the microsecond: 5400 is `1h30m`."""
    left = round(seconds * 10**6)
    text = ""
    for unit, size in (("h", 3600 * 10**6), ("m", 60 * 10**6), ("s", 10**6)):
        count, left = divmod(left, size)
        text += f"{count}{unit}" if count else ""
    return text + (f"{left / 1000:g}ms" if left else "") or "0s"


def parse_size(value: object) -> int:
    """Bytes in a Kubernetes quantity such as `512Mi`; a number is taken as bytes."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = (
        re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)(Ki|Mi|Gi|Ti|k|M|G|T|)", value) if isinstance(value, str) else None
    )
    if match is None:
        raise ValueError(f"{value!r} is not a size; {PATTERN_HINTS[SIZE_PATTERN]}")
    return int(Decimal(match[1]) * _BYTES[match[2]])


def format_size(size: int) -> str:
    """The shortest exact text of a size in bytes."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return str(size)


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN, "minLength": 2, "maxLength": 32}),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": SIZE_PATTERN, "minLength": 1, "maxLength": 32}),
]
Name = Annotated[str, Field(pattern=NAME_PATTERN, min_length=1, max_length=63)]
Subdomain = Annotated[str, Field(pattern=SUBDOMAIN_PATTERN, min_length=1, max_length=253)]
Digest = Annotated[str, Field(pattern=DIGEST_PATTERN, min_length=71, max_length=71)]


class Ref(ApiType):
    """A reference to another object of the same namespace."""

    name: Name = Field(description="Name of the object that is meant, in the same namespace.")
