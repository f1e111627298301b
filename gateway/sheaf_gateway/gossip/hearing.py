"""What other gateways told, worked into this one's router and admission, and taken out again when they fall silent.

Deterministic, with the time as an argument. A peer is one life of a gateway. Its attempts stand in the router's ledgers
beside our own, so that whatever an agent reports beyond the ledgers is really somebody else's, and nothing is counted
twice. Batches count only in order: one that comes twice or late is dropped, a gap or a number of attempts that does not
fit makes us ask for a summary. Nobody is believed beyond fixed bounds, and a peer that says nothing for `SILENCE_S` is
taken for dead.
"""

from collections.abc import Iterable

import msgspec

from sheaf_gateway.admission.admission import Admission
from sheaf_gateway.admission.others import Others
from sheaf_gateway.gossip.wire import Batch, Door, Sent, Turned, unpacked
from sheaf_gateway.routing.cost import pairs
from sheaf_gateway.routing.ledger import Ticket
from sheaf_gateway.routing.router import Router
from sheaf_gateway.routing.sessions import Turn

SILENCE_S = 5.0
ASK_AGAIN_S = 0.2
MAX_PEERS = 256
MAX_LIVE = 262_144
MAX_PIECES = 65_536
MAX_ENTRIES = 65_536


class Heard(msgspec.Struct, frozen=True):
    """What became of a batch. `taken`: it counted; `wanted`: ask for a summary of its life; `asked`: it asks for ours;
    `doors`: somebody may come in at one of these Models now."""

    taken: bool = False
    wanted: bool = False
    asked: bool = False
    doors: frozenset[str] = frozenset()


_NOTHING = Heard()


class Peer:
    """One life of another gateway, as far as it told of itself."""

    __slots__ = ("asked_at", "doors", "heard_at", "names", "number", "pieces", "service", "tickets", "used", "whole")

    def __init__(self) -> None:
        self.number = 0
        self.heard_at = 0.0
        self.asked_at = float("-inf")
        self.whole = False
        self.names: dict[int, str] = {}
        self.tickets: dict[int, Ticket] = {}
        self.pieces: dict[int, list[int]] = {}
        self.doors: dict[str, Door] = {}
        self.service: dict[tuple[str, str], float] = {}
        self.used: dict[str, tuple[int, float, int]] = {}


class Hearing:
    """All peers of a gateway whose own life is `life`."""

    def __init__(self, life: int, router: Router, admission: Admission, *, silence_s: float = SILENCE_S) -> None:
        self.life = life
        self.silence_s = silence_s
        self.peers: dict[int, Peer] = {}
        self._router = router
        self._admission = admission

    def take(self, batch: Batch, now: float) -> Heard:
        """Work a batch in."""
        peer = self._peer(batch)
        if peer is None or batch.number <= peer.number:
            return _NOTHING
        if batch.number > peer.number + 1 or batch.anew:
            self._begin_anew(peer, known=batch.anew)
        peer.number, peer.heard_at = batch.number, now
        touched = self._work_in(peer, batch, now)
        if batch.whole and len(peer.tickets) != batch.live:
            peer.whole = False
        if batch.leaving:
            touched |= self._drop(batch.life)
        wanted = not peer.whole and not batch.leaving and now >= peer.asked_at + ASK_AGAIN_S
        if wanted:
            peer.asked_at = now
        return Heard(taken=True, wanted=wanted, asked=self.life in batch.wanted, doors=frozenset(touched))

    def expire(self, now: float) -> frozenset[str]:
        """Drop peers that said nothing for too long; the Models whose doors they leave."""
        silent = [life for life, peer in self.peers.items() if now - peer.heard_at > self.silence_s]
        return frozenset(model for life in silent for model in self._drop(life))

    def clear(self) -> None:
        """Drop every peer."""
        for life in list(self.peers):
            self._drop(life)

    def _peer(self, batch: Batch) -> Peer | None:
        if batch.life == self.life:
            return None
        peer = self.peers.get(batch.life)
        if peer is None and len(self.peers) < MAX_PEERS and not batch.leaving:
            peer = self.peers[batch.life] = Peer()
            peer.number = batch.number - 1
            peer.whole = batch.number == 1
        return peer

    def _begin_anew(self, peer: Peer, *, known: bool) -> None:
        """A summary begins (`known`), or something was missed."""
        peer.pieces.clear()
        peer.whole = known
        if known:
            peer.names.clear()
            for ticket in peer.tickets.values():
                self._router.part(ticket)
            peer.tickets.clear()

    def _work_in(self, peer: Peer, batch: Batch, now: float) -> set[str]:
        for name in batch.names:
            if len(peer.names) < MAX_ENTRIES:
                peer.names[name.number] = name.text
        self._attempts(peer, batch, now)
        for broke in batch.breakers:
            pod = peer.names.get(broke.pod)
            if pod is not None and pod in self._router.ledgers:
                self._router.warned(pod, now, opened=broke.open)
        for turned in batch.turned:
            self._turn(peer, turned, now)
        self._serve(peer, batch, now)
        return self._doors(peer, batch.doors)

    def _attempts(self, peer: Peer, batch: Batch, now: float) -> None:
        for piece in batch.pieces:
            if len(peer.pieces) < MAX_PIECES:
                peer.pieces[piece.attempt] = unpacked(piece.chain) + peer.pieces.get(piece.attempt, [])
        for sent in batch.sent:
            self._join(peer, sent, now)
        for number in batch.answered:
            ticket = peer.tickets.get(number)
            if ticket is not None and not ticket.answered:
                self._router.move_on(ticket, now)
        for number in batch.finished:
            ticket = peer.tickets.pop(number, None)
            if ticket is not None:
                self._router.part(ticket)

    def _join(self, peer: Peer, sent: Sent, now: float) -> None:
        pod, model = peer.names.get(sent.pod), peer.names.get(sent.model)
        chain = unpacked(sent.chain) + peer.pieces.pop(sent.attempt, [])
        if pod is None or model is None or sent.attempt in peer.tickets or len(peer.tickets) >= MAX_LIVE:
            return
        tokens, held = float(sent.tokens), float(sent.held)
        ticket = peer.tickets[sent.attempt] = Ticket(
            pod,
            model,
            probe=False,
            sent_at=now,
            tokens=tokens,
            ahead=0.0,
            adapter=peer.names.get(sent.adapter),
            held=held,
            pairs=pairs(tokens, max(0.0, held - tokens)),
            epoch=sent.epoch,
        )
        self._router.join(ticket, chain, now, exact=sent.exact)
        if sent.answered:
            self._router.move_on(ticket, now)

    def _turn(self, peer: Peer, told: Turned, now: float) -> None:
        pod = peer.names.get(told.pod)
        if pod is not None:
            tip = unpacked(told.tip)[0]
            turn = Turn((pod, told.epoch), tip, told.blocks, told.size, told.answer, now, meter=0.0)
            self._router.hear(told.session, turn)

    def _serve(self, peer: Peer, batch: Batch, now: float) -> None:
        for told in batch.service:
            model, tenant = peer.names.get(told.model), peer.names.get(told.tenant)
            if model is None or tenant is None:
                continue
            more = _further(peer.service, (model, tenant), told.total)
            if more:
                self._admission.hear(model, tenant, more, told.weight)
        for used in batch.used:
            scope = peer.names.get(used.scope)
            if scope is not None and (scope in peer.used or len(peer.used) < MAX_ENTRIES):
                self._use(peer, scope, (used.requests, used.tokens, used.running), now)

    def _use(self, peer: Peer, scope: str, told: tuple[int, float, int], now: float) -> None:
        requests, tokens, running = peer.used.get(scope, (told[0], told[1], 0))
        peer.used[scope] = max(requests, told[0]), max(tokens, told[1]), told[2]
        more = max(0, told[0] - requests), max(0.0, told[1] - tokens), told[2] - running
        self._admission.limits.hear(scope, *more, now)

    def _doors(self, peer: Peer, doors: Iterable[Door]) -> set[str]:
        touched = set()
        for door in doors:
            model = peer.names.get(door.model)
            if model is None or (model not in peer.doors and len(peer.doors) >= MAX_ENTRIES):
                continue
            touched.add(model)
            if door.running or door.waiting:
                peer.doors[model] = door
            else:
                peer.doors.pop(model, None)
        for model in touched:
            self._count(model)
        return touched

    def _count(self, model: str) -> None:
        found = [peer.doors[model] for peer in self.peers.values() if model in peer.doors]
        if not found:
            self._admission.others.pop(model, None)
            return
        running, waiting = sum(door.running for door in found), sum(door.waiting for door in found)
        self._admission.others[model] = Others(running, waiting)

    def _drop(self, life: int) -> set[str]:
        peer = self.peers.pop(life)
        for ticket in peer.tickets.values():
            self._router.part(ticket)
        for scope, (_, _, running) in peer.used.items():
            self._admission.limits.hear(scope, 0, 0.0, -running, peer.heard_at)
        for model in peer.doors:
            self._count(model)
        return set(peer.doors)


def _further(known: dict[tuple[str, str], float], key: tuple[str, str], total: float) -> float:
    """How far a total went beyond all that was told before; what was there before the first word does not count."""
    before = known.get(key)
    if before is None and len(known) >= MAX_ENTRIES:
        return 0.0
    known[key] = total if before is None else max(before, total)
    return 0.0 if before is None else max(0.0, total - before)
