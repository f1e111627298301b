"""How many replicas of a Model there should be: pure decisions from demand, promises and time to a number."""

from sheaf_operator.planning.autoscaling.decide import decide
from sheaf_operator.planning.autoscaling.facts import Demand, Facts, Promise, Reason, Speed, Work
from sheaf_operator.planning.autoscaling.gather import Report, Reports
from sheaf_operator.planning.autoscaling.memory import Decision, Memory
from sheaf_operator.planning.autoscaling.scaler import Scaler

__all__ = [
    "Decision",
    "Demand",
    "Facts",
    "Memory",
    "Promise",
    "Reason",
    "Report",
    "Reports",
    "Scaler",
    "Speed",
    "Work",
    "decide",
]
