"""Logs: one JSON object a line on standard error, the libraries' records through the same pipe, repetitions dropped."""

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO

import orjson
import structlog

REPEAT_AFTER = 60.0
REMEMBERED = 256

_shared: list[Callable[..., Any]] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
]


class Unrepeated(logging.Filter):
    """Lets a library's line through once a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._last: OrderedDict[str, float] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line was not let through in the last minute."""
        text, now = f"{record.name} {record.msg}"[:300], self._clock()
        if now - self._last.get(text, -REPEAT_AFTER) < REPEAT_AFTER:
            return False
        self._last[text] = now
        self._last.move_to_end(text)
        if len(self._last) > REMEMBERED:
            self._last.popitem(last=False)
        return True


def set_up(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Log as JSON lines; kopf, aiohttp and asyncio too."""
    structlog.configure(
        processors=[*_shared, structlog.processors.format_exc_info, _render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(Unrepeated())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _render],
        )
    )
    root = logging.getLogger()
    root.handlers, root.level = [handler], logging.WARNING
    for name in ("asyncio", "kubernetes", "kopf._core.reactor.running"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _render(_: object, __: str, event: MutableMapping[str, Any]) -> str:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
