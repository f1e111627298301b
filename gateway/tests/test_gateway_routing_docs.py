"""What docs/gateway.md says of the cost model is what it is."""

import re
from pathlib import Path

import msgspec
from sheaf_gateway.routing.cost import Coefficients

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "gateway.md").read_text()
ROW = re.compile(r"^\| (`\w+`(?:, `\w+`)*) \| ms[^|]* \| ([0-9.,]+(?:, [0-9.,]+)*) \|", re.MULTILINE)


def test_every_coefficient_is_told_with_its_prior():
    told = {
        name.strip("`"): float(prior.replace(",", ""))
        for names, priors in ROW.findall(TEXT)
        for name, prior in zip(names.split(", "), priors.split(", "), strict=True)
    }
    assert told == msgspec.structs.asdict(Coefficients())


def test_every_coefficient_has_its_place_in_a_formula():
    start = TEXT.index("| term | formula |")
    formulas = TEXT[start : TEXT.index("\n\n", start)]
    prices = {name for name in Coefficients.__struct_fields__ if "patience" not in name}
    assert {name for name in prices if f"`{name}`" not in formulas} == set()
