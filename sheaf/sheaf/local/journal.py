"""What happened, one line each, for the terminal; saying the same of the same thing again says nothing."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

KEPT_EVENTS = 200
KEPT_SUBJECTS = 4096


@dataclass(frozen=True, slots=True)
class Event:
    """One line: when (Unix seconds), about what, and whether somebody should look."""

    at: float
    subject: str
    text: str
    warning: bool = False

    def __str__(self) -> str:
        """The line as `sheaf up` prints it."""
        clock = time.strftime("%H:%M:%S", time.localtime(self.at))
        return f"{clock} {'!' if self.warning else ' '} {self.subject}: {self.text}"


class Journal:
    """The latest events; `sink` gets every new one."""

    def __init__(self, sink: Callable[[Event], None] = lambda _: None, clock: Callable[[], float] = time.time) -> None:
        self.sink, self._clock = sink, clock
        self.recent: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._last: OrderedDict[str, str] = OrderedDict()

    def say(self, subject: str, text: str, *, warning: bool = False) -> None:
        """Add an event, unless it is what was said of the subject last."""
        if self._last.get(subject) == text:
            return
        self._last[subject] = text
        self._last.move_to_end(subject)
        if len(self._last) > KEPT_SUBJECTS:
            self._last.popitem(last=False)
        event = Event(self._clock(), subject, text, warning)
        self.recent.append(event)
        self.sink(event)

    def recovered(self, subject: str) -> None:
        """What was wrong with the subject is over; where it was said, its end is said too."""
        if self._last.pop(subject, None) is not None:
            self.say(subject, "is well again")
            self._last.pop(subject, None)
