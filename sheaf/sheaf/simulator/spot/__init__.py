"""Weeks of a spot market at the level of replicas: capacity policies side by side, and a bound that knows it all."""

from sheaf.simulator.spot.demand import Demand, demand_of
from sheaf.simulator.spot.fluid import Outlook, Pool, Summary
from sheaf.simulator.spot.omniscient import omniscient
from sheaf.simulator.spot.product import Sheaf
from sheaf.simulator.spot.skyserve import AllOnDemand, PureSpot, SkyServe
from sheaf.simulator.spot.weather import Weather, weather

__all__ = [
    "AllOnDemand",
    "Demand",
    "Outlook",
    "Pool",
    "PureSpot",
    "Sheaf",
    "SkyServe",
    "Summary",
    "Weather",
    "demand_of",
    "omniscient",
    "weather",
]
