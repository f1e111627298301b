"""The base of every API type, and the scalar types with units.

A user writes durations (`800ms`, `5m`) and sizes (`512Mi`) as Kubernetes users expect; code reads plain numbers: seconds as
`float`, bytes as `int`. Both serialise back to the text form, so that an object survives a round trip through the API server.
Unknown fields are refused: a misspelt field must never be a silent default.
"""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel

GROUP = "sheaf.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
DURATION_PATTERN = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
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


def parse_duration(value: object) -> float:
    """Seconds in a text such as `800ms`, `1m30s`; a number is taken as seconds (the form that code holds)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str) or not re.match(DURATION_PATTERN, value):
        raise ValueError(f"{value!r} is not a duration; write a number with a unit, such as 800ms, 30s, 5m or 1h30m")
    return sum(float(n) * _SECONDS[unit] for n, unit in re.findall(r"([0-9.]+)(ms|s|m|h)", value))


def format_duration(seconds: float) -> str:
    """The shortest exact text of a duration in seconds."""
    milliseconds = round(seconds * 1000)
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


def parse_size(value: object) -> int:
    """Bytes in a Kubernetes quantity such as `512Mi`; a number is taken as bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.match(r"^([0-9]+(?:\.[0-9]+)?)(Ki|Mi|Gi|Ti|k|M|G|T|)$", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a size; write a number with a unit, such as 512Mi or 4Gi")
    return round(float(match[1]) * _BYTES[match[2]])


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
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN, "maxLength": 32}),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": SIZE_PATTERN, "maxLength": 32}),
]
Name = Annotated[str, Field(pattern=NAME_PATTERN, min_length=1, max_length=63)]
Digest = Annotated[str, Field(pattern=DIGEST_PATTERN)]


class Ref(ApiType):
    """A reference to another object of the same namespace."""

    name: Name = Field(description="Name of the object that is meant, in the same namespace.")
