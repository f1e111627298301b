"""Requests whose pod was lost, or has to go: who goes on elsewhere when, and who is broken off, as in the gateway.

The gateway's own functions say whose turn it is (`continuation.pacing`), which streams leave a pod before its deadline
(`continuation.notice`) and where the bounds are (`continuation.bounds`). Those of whom the caller has seen nothing are
asked anew at once, `ATTEMPTS` times in all. Who finds no pod waits until there is one, so long and no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet

from sheaf_gateway.continuation.bounds import MendingRules
from sheaf_gateway.continuation.notice import Lengths, Progress, stays
from sheaf_gateway.continuation.pacing import Pacing

from sheaf.simulator.clock import Clock
from sheaf.simulator.flights import Flight
from sheaf.simulator.pods import Pod

ATTEMPTS = 3
LOOK_S = 0.5
PAUSE_S, MAX_PAUSE_S = 0.1, 5.0

Leaving = Callable[[str], Sequence[tuple[Pod[Flight], float]]]


class _Seam:
    """One request on its way from a pod to another: where it leaves while it still runs there, how often it moved, how
    often in vain since it last said something, and until when it looks for a pod."""

    __slots__ = ("fruitless", "leaves", "moves", "place", "since", "starting", "stranded", "until")

    def __init__(self) -> None:
        self.moves = self.fruitless = 0
        self.place: int | None = None
        self.leaves: Pod[Flight] | None = None
        self.starting = self.stranded = False
        self.since = self.until = 0.0


class Seams:
    """All of them.

    Args:
        clock: the virtual time.
        ready: pods of a Model that take requests.
        leaving: engines of a Model that have to go, and when.
        batch: the Models whose requests give way.
        send: sends a request to a pod; there is one.
        leave: takes a request off the pod where it runs, with the tokens that its caller has from there.
        broken: told of a request that is not answered whole.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        ready: Callable[[str], int],
        leaving: Leaving,
        batch: AbstractSet[str],
        send: Callable[[Flight], None],
        leave: Callable[[Flight, Pod[Flight]], None],
        broken: Callable[[Flight], None],
    ) -> None:
        self.rules = MendingRules()
        self.moved = 0
        self._clock, self._ready, self._leaving, self._batch = clock, ready, leaving, batch
        self._send, self._leave, self._broken = send, leave, broken
        self._seams: dict[int, _Seam] = {}
        self._pacings: dict[str, Pacing] = {}
        self._turns: dict[tuple[str, int], Flight] = {}
        self._stranded: dict[str, list[Flight]] = {}
        self._lengths: dict[str, Lengths] = {}
        self._looking: set[str] = set()

    def lost(self, flights: Iterable[Flight]) -> None:
        """These lost their pod."""
        models = dict.fromkeys([self._lose(flight) for flight in flights])
        for model in models:
            self._call_in(model)

    def spoke(self, flight: Flight) -> None:
        """Its pod has said something anew."""
        seam = self._seams.get(flight.number) if self._seams else None
        if seam is not None:
            self._started(flight, seam)
            seam.fruitless = 0

    def done(self, flight: Flight) -> None:
        """It was answered."""
        self._lengths.setdefault(flight.call.model, Lengths()).observe(flight.call.output_tokens)
        if self._seams:
            self._forget(flight)

    def changed(self, model: str) -> None:
        """The pods of a Model are others: those who found none look again, and those whose pod has to go."""
        if self._ready(model):
            stranded, self._stranded[model] = self._stranded.get(model, []), []
            for flight in stranded:
                self._seams[flight.number].stranded = False
                self._go_on(flight)
            self._call_in(model)
        self._look(model)

    def _lose(self, flight: Flight) -> str:
        seam, model = self._seams.setdefault(flight.number, _Seam()), flight.call.model
        self._give_up_turn(flight, seam)
        if not seam.fruitless:
            seam.since = self._clock.now
            seam.until = 0.0
        seam.fruitless += 1
        seam.moves += 1
        over = seam.moves > self.rules.max_continuations if flight.first_at else flight.attempts >= ATTEMPTS
        if over:
            self._break(flight)
        elif seam.fruitless > 1 and flight.first_at:
            pause = min(PAUSE_S * 2.0 ** (seam.fruitless - 2), MAX_PAUSE_S)
            self._clock.at(self._clock.now + pause, self._paused, flight)
        else:
            self._go_on(flight)
        return model

    def _paused(self, flight: Flight) -> None:
        self._go_on(flight)
        self._call_in(flight.call.model)

    def _go_on(self, flight: Flight) -> None:
        """A stream waits for its turn; what its caller has seen nothing of needs none."""
        if flight.first_at:
            self._queue(flight, self._seams[flight.number])
        elif self._ready(flight.call.model):
            self._send(flight)
        else:
            self._strand(flight)

    def _queue(self, flight: Flight, seam: _Seam) -> None:
        model = flight.call.model
        seam.place = self._pacings.setdefault(model, Pacing()).wait(batch=model in self._batch)
        self._turns[model, seam.place] = flight

    def _call_in(self, model: str) -> None:
        """Let as many begin as their pods can take beside what they run."""
        pacing = self._pacings.get(model)
        if pacing is None:
            return
        most = self.rules.starting_per_pod * max(1, self._ready(model))
        while (place := pacing.next(most)) is not None:
            self._begin(self._turns.pop((model, place)))

    def _begin(self, flight: Flight) -> None:
        seam = self._seams[flight.number]
        seam.place, seam.starting = None, True
        pod, seam.leaves = seam.leaves, None
        if not self._ready(flight.call.model):
            self._pacings[flight.call.model].started()
            seam.starting = False
            if pod is None:
                self._strand(flight)
            return
        if pod is not None:
            seam.moves += 1
            self._leave(flight, pod)
        self.moved += 1
        self._send(flight)

    def _strand(self, flight: Flight) -> None:
        """There is no pod: wait for one, so long and no longer."""
        seam, now = self._seams[flight.number], self._clock.now
        seam.until = seam.until or now + self.rules.max_wait_s
        seam.stranded = True
        self._stranded.setdefault(flight.call.model, []).append(flight)
        self._clock.at(max(now, seam.until), self._too_late, flight)

    def _too_late(self, flight: Flight) -> None:
        seam = self._seams.get(flight.number)
        if seam is not None and seam.stranded and self._clock.now >= seam.until:
            self._stranded[flight.call.model].remove(flight)
            self._break(flight)

    def _break(self, flight: Flight) -> None:
        del self._seams[flight.number]
        self._broken(flight)

    def _forget(self, flight: Flight) -> None:
        seam = self._seams.pop(flight.number, None)
        if seam is not None:
            self._give_up_turn(flight, seam)

    def _give_up_turn(self, flight: Flight, seam: _Seam) -> None:
        model = flight.call.model
        if seam.place is not None:
            self._turns.pop((model, seam.place))
            self._pacings[model].leave(seam.place)
            seam.place = seam.leaves = None
        self._started(flight, seam)

    def _started(self, flight: Flight, seam: _Seam) -> None:
        """A continuation has begun to stream, or will not: another may start."""
        if seam.starting:
            seam.starting = False
            self._pacings[flight.call.model].started()
            self._clock.at(self._clock.now, self._call_in, flight.call.model)

    # Notices.

    def _look(self, model: str) -> None:
        """Decide for every stream of a pod that has to go; again while there are any."""
        leaving = [(pod, end) for pod, end in self._leaving(model) if pod.flights]
        if not leaving or not self._ready(model):
            return
        for pod, end in leaving:
            self._give_notice(model, pod, end - self._clock.now)
        self._call_in(model)
        if model not in self._looking:
            self._looking.add(model)
            self._clock.at(self._clock.now + LOOK_S, self._look_again, model)

    def _look_again(self, model: str) -> None:
        self._looking.discard(model)
        self._look(model)

    def _give_notice(self, model: str, pod: Pod[Flight], left_s: float) -> None:
        mean = self._lengths.get(model, Lengths()).mean
        for flight, tokens in pod.produced():
            if not flight.first_at:
                continue
            progress = Progress(flight.kept + tokens, self._clock.now - flight.first_at, None)
            if not stays(progress, mean, left_s, self.rules.lead_s):
                self._notice(flight, pod)

    def _notice(self, flight: Flight, pod: Pod[Flight]) -> None:
        """Move it when it is its turn; until then it goes on where it is."""
        seam = self._seams.setdefault(flight.number, _Seam())
        if seam.place is None and not seam.starting and seam.moves < self.rules.max_continuations:
            seam.leaves = pod
            self._queue(flight, seam)
