"""Who is told of what the router does, as it does it."""

from typing import Protocol

from sheaf_gateway.routing.ledger import Ticket
from sheaf_gateway.routing.sessions import Turn


class Teller(Protocol):
    """Who wants to know of this gateway's own attempts (see `gossip.telling`)."""

    def sent(self, ticket: Ticket, chain: list[int], *, exact: bool) -> None:
        """An attempt began with a prompt of this chain."""

    def answered(self, ticket: Ticket) -> None:
        """Its answer began."""

    def finished(self, ticket: Ticket) -> None:
        """It is over."""

    def broke(self, pod: str, *, opened: bool) -> None:
        """The breaker of a pod opened, or closed."""

    def turned(self, session: int, turn: Turn) -> None:
        """A turn of a session is over."""
