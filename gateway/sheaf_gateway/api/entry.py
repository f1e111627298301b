"""One call's way through the door: shared limits, admission, the wait, and the books when it is over.

Without shared limits nothing here awaits anything: a call that is admitted at once goes on in the same turn.
"""

import asyncio
from typing import TYPE_CHECKING, cast

import msgspec
import structlog

from sheaf_gateway.admission.admission import Admit, Reject, Wait, over_limit
from sheaf_gateway.admission.ending import Ending, settle
from sheaf_gateway.admission.expecting import expected
from sheaf_gateway.admission.limits import Refusal, ScopedRate
from sheaf_gateway.admission.terms import Work
from sheaf_gateway.api import failures
from sheaf_gateway.api.asking import Asked
from sheaf_gateway.api.shared import LimitsUnavailable, bounded

if TYPE_CHECKING:
    from sheaf_gateway.api.call import Call
    from sheaf_gateway.api.inference import Inference

log = structlog.get_logger(__name__)

_NO_SCOPES: tuple[ScopedRate, ...] = ()


class Entry:
    """A call at the door."""

    __slots__ = ("_asked", "_call", "_core", "_lease", "_leased", "_waited", "admitted", "door")

    def __init__(self, core: "Inference", call: "Call", asked: Asked) -> None:
        self._core = core
        self._call = call
        self._asked = asked
        self._leased = _NO_SCOPES
        self._lease = ""
        self._waited = False
        self.door = asked.door
        self.admitted = False

    def begin(self) -> None:
        """Ask the shared limits where there are any, then admission."""
        shared, scopes = self._core.shared, self.door.scopes
        if shared is None or not scopes or not (leased := bounded(scopes)):
            self._knock()
            return
        self._lease = self._core.lease(self.door.request_id)
        charging = asyncio.ensure_future(shared.charge(self._lease, leased, self.door.tokens))
        charging.add_done_callback(lambda task: self._charged(task, leased))

    def enter(self) -> None:
        """Admission let it in, at once or from the queue."""
        self.admitted = True
        self._call.enter()

    def refuse(self, answer: Reject) -> None:
        """Admission said no, at once or after a wait."""
        self._call.fail(failures.rejected(answer))

    def withdraw(self) -> None:
        """The client went away."""
        self._core.waiting.withdraw(self.door)

    def close(self, ending: Ending, now: float) -> None:
        """The call is over, however it went."""
        core, used = self._core, ending.total(self.door.prompt)
        if self.admitted:
            settle(core.admission, self.door, ending, now)
            core.call_in(self.door.model)
        if self._leased and core.shared is not None:
            correction = -self.door.tokens if not self.admitted else 0.0 if used is None else used - self.door.tokens
            refund = not self.admitted and not self._waited
            core.shared.settle(self._lease, self._leased, correction, refund=refund)

    def _charged(self, task: asyncio.Future[Refusal | None], leased: tuple[ScopedRate, ...]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        shared = self._core.shared
        if error is None and task.result() is None:
            self._charged_well(leased)
        elif self._call.finished:
            return
        elif error is None:
            self.refuse(over_limit(cast("Refusal", task.result())))
        elif isinstance(error, LimitsUnavailable) and shared is not None and shared.fail_open:
            self._knock()
        else:
            self._unchecked(error)

    def _charged_well(self, leased: tuple[ScopedRate, ...]) -> None:
        shared = self._core.shared
        if self._call.finished and shared is not None:
            shared.settle(self._lease, leased, -self.door.tokens, refund=True)
            return
        self._leased = leased
        slots = self._core.slots(self.door.model)
        self.door = msgspec.structs.replace(self.door, scopes=_NO_SCOPES, slots=slots)
        self._knock()

    def _unchecked(self, error: BaseException) -> None:
        if not isinstance(error, LimitsUnavailable):
            log.error("limits_broke_off", exc_info=error)
        self._call.fail(failures.limits_unavailable())

    def _knock(self) -> None:
        core = self._core
        answer = core.admission.decide(self.door, core.now(), self._measure)
        if isinstance(answer, Admit):
            self.enter()
        elif isinstance(answer, Wait):
            self._waited = True
            core.waiting.add(self.door, self, answer.deadline)
            if answer.displaced is not None and answer.refusal is not None:
                core.waiting.displace(answer.displaced, answer.refusal)
        else:
            self.refuse(answer)

    def _measure(self) -> Work:
        """What the request would take where most of its prompt is cached; asked only of those who must wait."""
        router, ask = self._core.router, self._asked.ask
        pods = self._core.store.fleet.pods_of(ask.model)
        matched = router.index.match(ask.chain, [(pod.name, pod.epoch) for pod in pods])
        price = router.model(ask.model).coefficients
        return expected(self.door.prompt, ask.chain, max(matched.values(), default=0), price)
