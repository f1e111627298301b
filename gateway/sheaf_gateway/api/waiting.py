"""The requests that wait at the door: who they are, the timer that ends each wait, and who goes in.

Somebody is called in whenever a request ends or the fleet changes. Besides, while anybody waits, all look again every
`_LOOK_S`: pods may have been found to take more without either.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from sheaf_gateway.admission.admission import Admission, Reject
from sheaf_gateway.admission.terms import Ask

if TYPE_CHECKING:
    from sheaf_gateway.api.entry import Entry

_LOOK_S = 0.25


class _Waiter(msgspec.Struct):
    entry: "Entry"
    timer: asyncio.TimerHandle


class WaitingRoom:
    """Carries out what admission decides about waiting; bounded by admission's own queue bounds."""

    def __init__(self, admission: Admission, loop: asyncio.AbstractEventLoop, slots: Callable[[str], int]) -> None:
        self._admission = admission
        self._loop = loop
        self._slots = slots
        self._looking = False
        self._waiters: dict[str, _Waiter] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, door: Ask, entry: "Entry", deadline: float) -> None:
        """Let a call wait until it is called in or `deadline` (loop time) is over."""
        timer = self._loop.call_at(deadline, self._expire, door)
        self._waiters[door.request_id] = _Waiter(entry, timer)
        self._look_again()

    def withdraw(self, door: Ask) -> None:
        """The call's client went away; nothing happens where it was not waiting."""
        waiter = self._waiters.pop(door.request_id, None)
        if waiter is not None:
            waiter.timer.cancel()
            self._admission.withdraw(door, self._loop.time())

    def displace(self, door: Ask, refusal: Reject) -> None:
        """A call made room for another, by admission's decision."""
        waiter = self._waiters.pop(door.request_id)
        waiter.timer.cancel()
        waiter.entry.refuse(refusal)

    def call_in(self, model: str) -> None:
        """Call in as many as there is room for."""
        slots = self._slots(model)
        while (door := self._admission.next_waiter(model, slots, self._loop.time())) is not None:
            waiter = self._waiters.pop(door.request_id)
            waiter.timer.cancel()
            waiter.entry.enter()

    def _look_again(self) -> None:
        if self._waiters and not self._looking:
            self._looking = True
            self._loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = False
        for model in {waiter.entry.door.model for waiter in self._waiters.values()}:
            self.call_in(model)
        self._look_again()

    def _expire(self, door: Ask) -> None:
        waiter = self._waiters.pop(door.request_id)
        waiter.entry.refuse(self._admission.expire(door, self._loop.time()))
