"""What this gateway tells: its own attempts as they happen, running totals of its doors, and summaries.

Deterministic, with the time as an argument. The router calls `sent`, `answered`, `finished` and `broke` as it decides;
`flush` makes batches of what has gathered, each small enough for one datagram. Nothing is kept that was told, but the
attempts under way: a summary tells those again. Where more gathers than may be held, it is thrown away and a summary is
told instead.
"""

from collections.abc import Callable, Iterable
from itertools import islice

import msgspec

from sheaf_gateway.admission.admission import Admission
from sheaf_gateway.gossip.wire import (
    MAX_CHAIN,
    MAX_NAMES,
    MAX_TEXT,
    PIECE,
    Batch,
    Broke,
    Door,
    Name,
    Piece,
    Sent,
    Service,
    Turned,
    Used,
    encode,
    packed,
)
from sheaf_gateway.routing.ledger import Ticket
from sheaf_gateway.routing.sessions import Turn

MAX_BYTES = 1_350
MAX_GATHERED = 4_096
_HEAD = 64
_ITEM = 48
_NUMBER = 9
_CHAIN_HEAD = 3

Item = Name | Piece | Sent | Door | Service | Used | Broke | Turned


class Teller:
    """A `routing.teller.Teller`. `wake` is called when there is something to flush, once until it is flushed."""

    def __init__(self, life: int, wake: Callable[[], None], *, max_bytes: int = MAX_BYTES) -> None:
        self.life = life
        self._wake = wake
        self._max_bytes = max_bytes
        self._number = 0
        self._live: dict[int, Ticket] = {}
        self._names: dict[str, int] = {}
        self._awake = False
        self._anew = False
        self._clear()

    def __len__(self) -> int:
        return len(self._live)

    # What happens here.

    def sent(self, ticket: Ticket, chain: list[int], *, exact: bool) -> None:
        """An attempt began with a prompt of this chain."""
        number, chain = ticket.number, chain[:MAX_CHAIN]
        self._live[number] = ticket
        if len(self._sent) >= MAX_GATHERED:
            self.summarise()
            return
        for start in range((len(chain) - 1) // PIECE * PIECE, 0, -PIECE):
            self._sent.append(Piece(number, packed(chain[start : start + PIECE])))
        self._sent.append(self._told(ticket, packed(chain[:PIECE]), exact=exact))
        self._stir()

    def answered(self, ticket: Ticket) -> None:
        """Its answer began."""
        self._answered.append(ticket.number)
        self._stir()

    def finished(self, ticket: Ticket) -> None:
        """It is over."""
        self._live.pop(ticket.number, None)
        self._finished.append(ticket.number)
        self._stir()

    def broke(self, pod: str, *, opened: bool) -> None:
        """The breaker of a pod opened, or closed."""
        if len(self._breakers) < MAX_GATHERED:
            self._breakers.append(Broke(self._name(pod), opened))
            self._stir()

    def turned(self, session: int, turn: Turn) -> None:
        """A turn of a session is over."""
        if len(self._turned) < MAX_GATHERED:
            pod, epoch = turn.pod
            told = Turned(session, self._name(pod), epoch, packed([turn.tip]), turn.blocks, turn.size, turn.answer)
            self._turned.append(told)
            self._stir()

    def doors(self, admission: Admission) -> None:
        """Gather what changed at the doors, in the books of service, and in the accounts of limits."""
        if self._anew:
            admission.stir()
        doors, service = admission.news()
        self._totals += [Door(self._name(model), running, waiting) for model, running, waiting in doors]
        self._totals += [Service(self._name(m), self._name(t), total, weight) for m, t, total, weight in service]
        self._totals += [
            Used(self._name(s), asked, tokens, running) for s, asked, tokens, running in admission.limits.news()
        ]

    def want(self, life: int) -> None:
        """Ask the gateway of that life for a summary."""
        self._wanted.append(life)
        self._stir()

    def summarise(self) -> None:
        """Tell everything anew with the next flush."""
        self._clear()
        self._names.clear()
        self._anew = True
        self._stir()

    # What goes out.

    def flush(self, at: float, *, leaving: bool = False) -> list[bytes]:
        """Batches of all that has gathered, one without news where that is nothing; `at` is Unix time in seconds."""
        self._awake = False
        summary = [self._told(ticket, b"", exact=False) for ticket in self._live.values()] if self._anew else []
        items: list[Item] = [*self._sent, *summary, *self._totals, *self._breakers, *self._turned]
        items[:0] = self._fresh
        batches = self._batches(items, at)
        batches[0] = msgspec.structs.replace(batches[0], anew=self._anew, wanted=self._wanted[:MAX_GATHERED])
        batches[-1] = msgspec.structs.replace(batches[-1], whole=True, leaving=leaving)
        self._anew = False
        self._clear()
        return [encode(batch) for batch in batches]

    def _batches(self, items: Iterable[Item], at: float) -> list[Batch]:
        batches, here, size = [], list[Item](), _HEAD + _NUMBER * min(len(self._wanted), MAX_GATHERED)
        for item in items:
            need = _size(item)
            if here and size + need > self._max_bytes:
                batches.append(self._batch(here, at))
                here, size = [], _HEAD
            here.append(item)
            size += need
        answered, finished = iter(self._answered), iter(self._finished)
        while True:
            most = max(1, (self._max_bytes - size) // _NUMBER)
            ends = list(islice(answered, most))
            overs = list(islice(finished, most - len(ends)))
            batches.append(self._batch(here, at, ends, overs))
            here, size = [], _HEAD
            if len(ends) + len(overs) < most:
                return batches

    def _batch(
        self, items: list[Item], at: float, answered: list[int] | None = None, finished: list[int] | None = None
    ) -> Batch:
        self._number += 1
        return Batch(
            life=self.life,
            number=self._number,
            at=at,
            live=len(self._live),
            whole=False,
            names=[item for item in items if isinstance(item, Name)],
            pieces=[item for item in items if isinstance(item, Piece)],
            sent=[item for item in items if isinstance(item, Sent)],
            answered=answered or [],
            finished=finished or [],
            doors=[item for item in items if isinstance(item, Door)],
            service=[item for item in items if isinstance(item, Service)],
            used=[item for item in items if isinstance(item, Used)],
            breakers=[item for item in items if isinstance(item, Broke)],
            turned=[item for item in items if isinstance(item, Turned)],
        )

    def _told(self, ticket: Ticket, chain: bytes, *, exact: bool) -> Sent:
        return Sent(
            ticket.number,
            self._name(ticket.pod),
            ticket.epoch,
            self._name(ticket.model),
            0 if ticket.adapter is None else self._name(ticket.adapter),
            round(ticket.tokens),
            round(ticket.held),
            exact,
            ticket.answered,
            chain,
        )

    def _name(self, text: str) -> int:
        found = self._names.get(text)
        if found is None:
            found = self._names[text] = len(self._names) + 1
            self._fresh.append(Name(found, text.encode("utf-8", "replace").decode()[:MAX_TEXT]))
        return found

    def _stir(self) -> None:
        if not self._awake:
            self._awake = True
            self._wake()

    def _clear(self) -> None:
        self._fresh: list[Name] = []
        self._sent: list[Piece | Sent] = []
        self._answered: list[int] = []
        self._finished: list[int] = []
        self._totals: list[Item] = []
        self._breakers: list[Broke] = []
        self._turned: list[Turned] = []
        self._wanted: list[int] = []
        if len(self._names) >= MAX_NAMES // 2:
            self._names.clear()
            self._anew = True


def _size(item: Item) -> int:
    """At most so many bytes of a batch."""
    if isinstance(item, Name):
        return _NUMBER + _CHAIN_HEAD + len(item.text.encode())
    return _ITEM + len(item.chain) if isinstance(item, Sent | Piece) else _ITEM
