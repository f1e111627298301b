"""What an installation knows of its capacity market: zones, prices, how long starts take. Left out: nobody knows."""

from typing import Annotated

from pydantic import Field
from sheaf_crds import ApiType, Model
from sheaf_crds.base import Duration

from sheaf_operator.planning.market.values import HOUR, SHORTFALL, Terms

ZONE_PATTERN = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
BATCH_SHORTFALL = 2.0

Zone = Annotated[str, Field(pattern=ZONE_PATTERN, min_length=1, max_length=63)]
Money = Annotated[float, Field(ge=0.0, le=1e6)]


class Prices(ApiType):
    """Money an hour of one accelerator."""

    on_demand: Money = Field(description="On demand.")
    spot: Money | None = Field(default=None, description="On spot, in zones that `zones` does not name.")
    zones: dict[Zone, Money] = Field(default_factory=dict, max_length=64, description="On spot, by zone.")


class MarketSettings(ApiType):
    """The market. With fewer than two zones the scheduler chooses zones; without prices, choices go by counts."""

    zones: Annotated[tuple[Zone, ...], Field(max_length=64)] = Field(
        default=(), description="Zones in which spot pods may be placed, as nodes carry them."
    )
    prices: dict[str, Prices] = Field(
        default_factory=dict, max_length=256, description="Prices by type of accelerator; `cpu`: pods without one."
    )
    cold_start: Duration = Field(default=180.0, description="From a pod's creation until it serves.")
    headroom: float = Field(
        default=0.2, ge=0.0, lt=1.0, description="Share of the replicas that can be missing with promises still kept."
    )
    shortfall: float = Field(
        default=SHORTFALL,
        ge=0.0,
        le=1e6,
        description="What an hour of one replica's load without a replica costs, in hours of an on-demand replica: 100 "
        "gives up a thousandth of the load where that saves a tenth of a replica's price.",
    )
    batch_shortfall: float = Field(
        default=BATCH_SHORTFALL, ge=0.0, le=1e6, description="The same for Models whose SLO is of the class Batch."
    )

    def terms(self, model: Model, *, batch: bool) -> Terms:
        """The market as pods of a Model meet it: prices of the accelerator that it prefers."""
        wanted = model.spec.accelerators[0] if model.spec.accelerators else None
        count = wanted.count if wanted else 1
        prices = self.prices.get(wanted.type if wanted else "cpu")
        common = Terms(
            zones=self.zones,
            cold_start=min(self.cold_start, 24 * HOUR),
            shortfall=self.batch_shortfall if batch else self.shortfall,
            headroom=self.headroom,
        )
        if prices is None:
            return common
        return Terms(
            zones=common.zones,
            on_demand=prices.on_demand * count,
            spot=None if prices.spot is None else prices.spot * count,
            spot_in={zone: price * count for zone, price in prices.zones.items()},
            cold_start=common.cold_start,
            shortfall=common.shortfall,
            headroom=common.headroom,
        )
