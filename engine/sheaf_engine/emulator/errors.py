"""vLLM's error answers, word for word where clients look at the words."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import orjson

_REPORTED = 10
_INTERNAL = ("list[", "function-", "union", "str", "int", "float", "bool", "dict")


class ApiError(Exception):
    """An answer other than 200.

    Attributes:
        status: HTTP status.
        body: JSON body.
    """

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        message = message.encode("utf-8", "replace").decode()
        super().__init__(message)
        self.status = status
        self.body = orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}})


class PlainError(ApiError):
    """An answer of the web framework under vLLM: ``{"detail": ...}``."""

    def __init__(self, status: int, detail: str | None = None) -> None:
        super().__init__(status, "")
        self.body = orjson.dumps({"detail": detail or HTTPStatus(status).phrase})


SERVER_ERROR = ApiError(500, "The emulator failed; its log says why", "InternalServerError")


def bad_parameter(name: str, message: str, value: object = None) -> ApiError:
    """400 for a parameter whose value is refused."""
    shown = "" if value is None else f", value={value}"
    return ApiError(400, f"{message} (parameter={name}{shown})", param=name)


def bad_body(errors: Iterable[Any]) -> ApiError:
    """400 for a body of the wrong shape, from pydantic's list of errors."""
    listed = list(errors)
    label = "error" if len(listed) == 1 else "errors"
    lines = [f"  {_line(error)}" for error in listed[:_REPORTED]]
    if len(listed) > _REPORTED:
        lines.append(f"  ...and {len(listed) - _REPORTED} more {label}")
    message = f"{len(listed)} validation {label}:\n" + "\n".join(lines)
    return ApiError(400, message, "Bad Request", _location(listed[0]))


def bad_json(position: int, reason: str) -> ApiError:
    """400 for a body that is not JSON."""
    error = {"type": "json_invalid", "loc": (str(position),), "msg": "JSON decode error", "input": {}}
    return bad_body([{**error, "ctx": {"error": reason}}])


def _location(error: Any) -> str:
    parts = [str(part) for part in error["loc"]]
    return ".".join(["body", *(part for part in parts if not part.startswith(_INTERNAL))])


def _line(error: Any) -> str:
    shown = {"type": error["type"], "loc": _location(error), "msg": error["msg"], "input": _summary(error.get("input"))}
    if "ctx" in error:
        shown["ctx"] = {key: value if isinstance(value, int) else str(value) for key, value in error["ctx"].items()}
    return str(shown)[:1000]


def _summary(value: object) -> str:
    if isinstance(value, list | dict | tuple):
        return f"<{type(value).__name__} of {len(value)} items>"
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "...[truncated]"
