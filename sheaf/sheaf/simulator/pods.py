"""One engine pod in virtual time: an engine, and the events on which anybody outside has to look at it.

A pod steps its engine event by event while prompts are computed, and lets it coast while it only decodes: then it wakes
shortly before the next sequence can finish, or when a request arrives, and catches up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from sheaf_engine.timing import Adapter, Request, TimingProfile

from sheaf.simulator.clock import Clock
from sheaf.simulator.coasting import CoastingEngine, Seen


class Flying(Protocol):
    """What a pod needs of a request that it serves."""

    @property
    def number(self) -> int:
        """Unique in a run."""


F = TypeVar("F", bound=Flying)


class Pod(Generic[F]):
    """An engine pod.

    Attributes:
        name: its name.
        model: the Model that it serves.
        engine: its engine, whose state holds for a time up to the end of the step under way.
        flights: the requests that it has, by number.
        on_cached: told how many tokens of a request were in the cache, when it is admitted.
        on_first: told when a request's first token is out.
        on_done: told when its last token is out.
    """

    def __init__(
        self,
        name: str,
        model: str,
        profile: TimingProfile,
        clock: Clock,
        on_cached: Callable[[F, int], None],
        on_first: Callable[[F], None],
        on_done: Callable[[F], None],
    ) -> None:
        self.name, self.model = name, model
        self.engine = CoastingEngine(profile)
        self.flights: dict[int, F] = {}
        self.on_cached, self.on_first, self.on_done = on_cached, on_first, on_done
        self.computed_tokens = 0
        self._clock = clock
        self._at = clock.now
        self._result: Seen | None = None
        self._turn = 0
        self._stepping = False

    def submit(self, flight: F, prompt: int, output: int, hashes: Sequence[int], adapter: Adapter | None) -> None:
        """Give it a request.

        Raises:
            ValueError: when it is longer than the engine serves.
        """
        now = self._clock.now
        if not self._stepping and self.engine.busy:
            self._at = self.engine.coast(self._at, now)
        self.engine.add_request(Request(flight.number, prompt, output, hashes, adapter))
        self.flights[flight.number] = flight
        if not self._stepping:
            self._look_at(max(self._at, now))

    def withdraw(self, flight: F) -> None:
        """Let a request go before it is done."""
        if self.flights.pop(flight.number, None) is None:
            return
        if not self._stepping and self.engine.busy:
            self._at = self.engine.coast(self._at, self._clock.now)
        self.engine.abort(flight.number)
        if not self._stepping:
            self._look_at(max(self._at, self._clock.now))

    def load_adapter(self, name: str, rank: int) -> None:
        """Load an adapter ahead of requests, as an agent does."""
        self.engine.load_adapter(Adapter(name, rank))

    def stop(self) -> list[tuple[F, int]]:
        """End at once; returns the requests that are lost, with the tokens that callers already have of each."""
        lost = self.produced()
        self._turn += 1
        self._stepping = True
        self.flights.clear()
        return lost

    def produced(self) -> list[tuple[F, int]]:
        """Its requests, with the tokens that callers have of each from here."""
        if not self._stepping and self.engine.busy:
            self._at = self.engine.coast(self._at, self._clock.now)
        out = self.engine.produced(int(self._at > self._clock.now))
        return [(flight, out.get(number, 0)) for number, flight in self.flights.items()]

    def cached_tokens(self, hashes: Sequence[int]) -> int:
        """Tokens of a prompt with these block hashes that are in the cache."""
        return self.engine.pool.match(hashes, len(hashes)) * self.engine.profile.block_size

    def _look_at(self, time: float) -> None:
        """The engine has nothing to show before `time`, when its step under way is over."""
        self._at = time
        self._stepping = True
        self._turn += 1
        self._clock.at(time, self._stepped, self._turn)

    def _stepped(self, turn: int) -> None:
        if turn != self._turn:
            return
        result, self._result = self._result, None
        if result is not None:
            self._tell(result)
        self._stepping = False
        self._go_on()

    def _go_on(self) -> None:
        engine = self.engine
        if not engine.busy:
            return
        wake = engine.quiet_until(self._at)
        if wake > self._at:
            self._turn += 1
            self._clock.at(wake, self._woken, self._turn)
            return
        self._result = engine.look(self._at)
        self._look_at(self._result.end)

    def _woken(self, turn: int) -> None:
        if turn == self._turn:
            self._look_at(max(self._clock.now, self.engine.coast(self._at, self._clock.now)))

    def _tell(self, result: Seen) -> None:
        flights = self.flights
        for admission in result.admitted:
            if not admission.resumed and admission.request_id in flights:
                self.on_cached(flights[admission.request_id], admission.cached_tokens)
        for number in result.first_tokens:
            if number in flights:
                self.on_first(flights[number])
        for number in result.finished:
            flight = flights.pop(number, None)  # type: ignore[arg-type]
            if flight is not None:
                self.on_done(flight)
