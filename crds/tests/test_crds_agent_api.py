"""The agent's wire types survive the wire, refuse what is misspelt, and read what a newer agent says."""

import pytest
from pydantic import ValidationError
from sheaf_crds.agent_api import AgentState, Catalog, CatalogEntry, Drain


def test_a_catalog_survives_the_wire_in_camel_case() -> None:
    catalog = Catalog(
        generation=3, adapters=(CatalogEntry(name="pirate", source="s3://a/pirate", size_limit=7, pinned=True),)
    )
    wire = catalog.to_wire()
    assert wire["adapters"][0]["sizeLimit"] == 7
    assert Catalog.model_validate(wire) == catalog


@pytest.mark.parametrize(
    "wrong", [{"name": "../x"}, {"source": "gopher://x/y"}, {"digest": "sha256:0"}, {"pined": True}]
)
def test_an_entry_that_is_not_sound_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CatalogEntry.model_validate({"name": "pirate", "source": "s3://a/pirate"} | wrong)


def test_a_field_of_a_newer_agent_is_ignored() -> None:
    assert (
        AgentState.model_validate({"version": 2, "colour": "red", "load": {"kvUsage": 0.5, "heat": 1}}).load.kv_usage
        == 0.5
    )


def test_a_drain_does_not_end_before_it_began() -> None:
    with pytest.raises(ValidationError):
        Drain(deadline=-1)
