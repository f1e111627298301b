"""Where replicas run and what stands in for them: zones, spot and on-demand capacity, what is remembered of them."""

from sheaf_operator.planning.market.ages import hazard
from sheaf_operator.planning.market.estimates import Estimate, estimate
from sheaf_operator.planning.market.memory import Sighting, ZoneRecord, remember
from sheaf_operator.planning.market.policy import decide
from sheaf_operator.planning.market.values import SHORTFALL, Ask, Decision, Held, Move, Terms

__all__ = [
    "SHORTFALL",
    "Ask",
    "Decision",
    "Estimate",
    "Held",
    "Move",
    "Sighting",
    "Terms",
    "ZoneRecord",
    "decide",
    "estimate",
    "hazard",
    "remember",
]
