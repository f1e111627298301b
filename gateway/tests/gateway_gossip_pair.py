"""Two gateways' decisions without their processes, for tests of what they tell each other."""

from sheaf_gateway.admission.admission import Admission
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.gossip.hearing import Hearing
from sheaf_gateway.gossip.telling import Teller
from sheaf_gateway.gossip.wire import decode
from sheaf_gateway.routing.prefix import chain, seed
from sheaf_gateway.routing.router import Ask, Router

PODS = [Pod(name=f"pod-{place}", model="base", engine_url="http://e", epoch=1) for place in range(3)]


def text(length: int, who: int = 0) -> bytes:
    return (b"%d " % who * length)[:length]


class Gateway:
    """One gateway's decisions, and what it tells and hears."""

    def __init__(self, life: int) -> None:
        self.life = life
        self.router, self.admission = Router(), Admission()
        self.woken = 0
        self.teller = Teller(life, self.wake)
        self.router.teller = self.teller
        self.admission.tell(on=True)
        self.hearing = Hearing(life, self.router, self.admission)
        self.tickets = []

    def wake(self) -> None:
        self.woken += 1

    def send(self, now: float, size: int = 1024, who: int = 0, adapter: str | None = None):
        found = chain(seed("base", adapter, "", ""), text(size, who))
        ask = Ask(request_id="r", model="base", adapter=adapter, chain=found, prompt_bytes=size)
        decision = self.router.decide(ask, PODS, now)
        ticket = self.router.sent(ask, decision, next(pod for pod in PODS if pod.name == decision.pod), now)
        self.tickets.append(ticket)
        return ticket

    def end(self, ticket) -> None:
        self.tickets.remove(ticket)
        self.router.finished(ticket)

    def tell(self, *others: "Gateway", now: float = 0.0, lost=(), leaving: bool = False) -> None:
        self.teller.doors(self.admission)
        for place, data in enumerate(self.teller.flush(1e9, leaving=leaving)):
            for other in others:
                if place not in lost:
                    other.hear(self, data, now)

    def hear(self, sender: "Gateway", data: bytes, now: float) -> None:
        heard = self.hearing.take(decode(data), now)
        if heard.wanted:
            self.teller.want(sender.life)
        if heard.asked:
            self.teller.summarise()

    def told(self) -> dict[str, int]:
        return {name: ledger.told for name, ledger in self.router.ledgers.items() if ledger.told}

    def own(self) -> dict[str, int]:
        return {
            name: ledger.running - ledger.told
            for name, ledger in self.router.ledgers.items()
            if ledger.running > ledger.told
        }


def met() -> tuple[Gateway, Gateway]:
    """Two that have heard of each other."""
    one, other = Gateway(1), Gateway(2)
    one.tell(other)
    other.tell(one)
    return one, other
