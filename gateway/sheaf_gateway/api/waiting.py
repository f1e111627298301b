"""The requests that wait at the door: who they are, and the timer that ends each wait."""

import asyncio
from typing import TYPE_CHECKING

import msgspec

from sheaf_gateway.admission.admission import Admission, Reject
from sheaf_gateway.admission.terms import Ask

if TYPE_CHECKING:
    from sheaf_gateway.api.entry import Entry


class _Waiter(msgspec.Struct):
    entry: "Entry"
    timer: asyncio.TimerHandle


class WaitingRoom:
    """Carries out what admission decides about waiting; bounded by admission's own queue bounds."""

    def __init__(self, admission: Admission, loop: asyncio.AbstractEventLoop) -> None:
        self._admission = admission
        self._loop = loop
        self._waiters: dict[str, _Waiter] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, door: Ask, entry: "Entry", deadline: float) -> None:
        """Let a call wait until it is called in or `deadline` (loop time) is over."""
        timer = self._loop.call_at(deadline, self._expire, door)
        self._waiters[door.request_id] = _Waiter(entry, timer)

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

    def call_in(self, model: str, slots: int) -> None:
        """Call in as many as there is room for."""
        while (door := self._admission.next_waiter(model, slots, self._loop.time())) is not None:
            waiter = self._waiters.pop(door.request_id)
            waiter.timer.cancel()
            waiter.entry.enter()

    def _expire(self, door: Ask) -> None:
        waiter = self._waiters.pop(door.request_id)
        waiter.entry.refuse(self._admission.expire(door, self._loop.time()))
