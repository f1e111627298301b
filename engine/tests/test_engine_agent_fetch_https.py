"""https:// sources: no address that is not public, no second resolution, no redirect that a source could not be."""

# ruff: noqa: F811 - pytest hands fixtures in by the name of the argument

import json
from pathlib import Path

import pytest
from engine_agent_helpers import write_base
from engine_agent_web import (  # noqa: F401 - fixtures are found by name
    HOST,
    NAMES,
    Site,
    adapter,
    get,
    hub,
    local,
    outside,
    public_loopback,
    refused,
    tls,
    web,
)
from sheaf_crds.digest import directory_digest
from sheaf_engine.agent import transfer
from sheaf_engine.agent.errors import Reason
from sheaf_engine.agent.layout import MODEL
from sheaf_engine.agent.transfer import Outside


def test_a_web_folder_gives_its_two_files(tmp_path: Path, adapter: Path, web: Site, tls: tuple[Path, Path]) -> None:
    web.put("/a/pirate", adapter)
    assert get(f"https://{HOST}:{web.port}/a/pirate", tmp_path / "out", outside(tls)) == NAMES
    assert directory_digest(tmp_path / "out") == directory_digest(adapter)
    assert web.asked == ["/a/pirate/adapter_config.json", "/a/pirate/adapter_model.safetensors"]
    assert set(web.hosts) == {f"{HOST}:{web.port}"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", HOST, "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"])
def test_no_connection_is_made_to_an_address_that_is_not_public(
    tmp_path: Path, web: Site, tls: tuple[Path, Path], host: str
) -> None:
    resolver = transfer.resolve if host != HOST else (lambda name, port: ["127.0.0.1"])
    reason, message = refused(f"https://{host}:{web.port}/a", tmp_path, outside(tls, private=False, resolver=resolver))
    assert reason is Reason.SOURCE_REFUSED
    assert "may not be reached" in message
    assert web.asked == []


@pytest.mark.usefixtures("public_loopback")
def test_a_name_that_resolves_elsewhere_the_second_time_is_connected_where_it_was_vetted(
    tmp_path: Path, adapter: Path, web: Site, tls: tuple[Path, Path]
) -> None:
    web.put("/a", adapter)
    answers = iter([["127.0.0.1"], ["127.0.0.1"], ["169.254.169.254"]])
    reach = outside(tls, private=False, resolver=lambda *_: next(answers))
    assert get(f"https://{HOST}:{web.port}/a", tmp_path / "o", reach) == NAMES


def test_one_private_address_among_public_ones_is_refused(tmp_path: Path, web: Site, tls: tuple[Path, Path]) -> None:
    mixed = outside(tls, private=False, resolver=lambda *_: ["93.184.216.34", "127.0.0.1"])
    assert refused(f"https://{HOST}:{web.port}/a", tmp_path, mixed)[0] is Reason.SOURCE_REFUSED
    none = outside(tls, private=False, resolver=lambda *_: [])
    assert refused(f"https://{HOST}:{web.port}/a", tmp_path, none)[0] is Reason.SOURCE_REFUSED


def test_a_redirect_is_followed_within_https(tmp_path: Path, adapter: Path, web: Site, tls: tuple[Path, Path]) -> None:
    web.put("/real", adapter)
    web.redirects["/a/adapter_config.json"] = "/real/adapter_config.json"
    web.redirects["/a/adapter_model.safetensors"] = f"https://{HOST}:{web.port}/real/adapter_model.safetensors"
    assert get(f"https://{HOST}:{web.port}/a", tmp_path / "out", outside(tls)) == NAMES


@pytest.mark.parametrize(
    "target",
    [
        "http://adapters.example/a",
        "file:///etc/passwd",
        "https://user@adapters.example/a",
        "https://2852039166/a",
        "//169.254.169.254/latest/meta-data",
        "https://[::ffff:169.254.169.254]/a",
        "https://internal.example/a",
        "/a/adapter_config.json",
        "",
        "https://adapters.example/a?token=1",
    ],
)
@pytest.mark.usefixtures("public_loopback")
def test_a_redirect_is_judged_like_a_source(tmp_path: Path, web: Site, tls: tuple[Path, Path], target: str) -> None:
    web.redirects["/a/adapter_config.json"] = target
    known = {HOST: "127.0.0.1", "internal.example": "10.0.0.1"}
    reach = outside(tls, private=False, resolver=lambda host, _: [known.get(host, host)])
    assert refused(f"https://{HOST}:{web.port}/a", tmp_path, reach)[0] is Reason.SOURCE_REFUSED
    assert set(web.asked) == {"/a/adapter_config.json"}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, Reason.SOURCE_DENIED),
        (403, Reason.SOURCE_DENIED),
        (404, Reason.FILES_MISSING),
        (410, Reason.FILES_MISSING),
        (500, Reason.SOURCE_UNREACHABLE),
        (206, Reason.SOURCE_UNREACHABLE),
    ],
)
def test_a_status_is_told_with_its_reason(
    tmp_path: Path, web: Site, tls: tuple[Path, Path], status: int, reason: Reason
) -> None:
    web.status["/a/adapter_config.json"] = status
    assert refused(f"https://{HOST}:{web.port}/a", tmp_path, outside(tls))[0] is reason


def test_bytes_are_counted_while_they_stream(tmp_path: Path, web: Site, tls: tuple[Path, Path]) -> None:
    web.files["/a/adapter_config.json"] = b"x" * 1000
    assert refused(f"https://{HOST}:{web.port}/a", tmp_path / "declared", outside(tls), limit=999)[0] is (
        Reason.SIZE_LIMIT_EXCEEDED
    )
    web.endless = True
    assert refused(f"https://{HOST}:{web.port}/a", tmp_path / "endless", outside(tls), limit=10**6)[0] is (
        Reason.SIZE_LIMIT_EXCEEDED
    )


def test_a_connection_that_breaks_off_is_told(tmp_path: Path, web: Site, tls: tuple[Path, Path]) -> None:
    web.files["/a/adapter_config.json"] = b"{}"
    web.cut = True
    assert refused(f"https://{HOST}:{web.port}/a", tmp_path, outside(tls))[0] is Reason.SOURCE_UNREACHABLE


def test_a_compressed_answer_that_was_not_asked_for_is_refused(
    tmp_path: Path, web: Site, tls: tuple[Path, Path]
) -> None:
    web.files["/a/adapter_config.json"] = b"{}"
    web.headers["content-encoding"] = "gzip"
    assert refused(f"https://{HOST}:{web.port}/a", tmp_path, outside(tls))[0] is Reason.SOURCE_REFUSED


def test_a_certificate_of_another_name_or_authority_is_refused(
    tmp_path: Path, web: Site, tls: tuple[Path, Path]
) -> None:
    reason, message = refused(f"https://other.example:{web.port}/a", tmp_path, outside(tls))
    assert reason is Reason.SOURCE_UNREACHABLE
    assert "certificate" in message
    unknown = Outside(allow_private_addresses=True, resolver=lambda *_: ["127.0.0.1"])
    assert refused(f"https://{HOST}:{web.port}/a", tmp_path, unknown)[0] is Reason.SOURCE_UNREACHABLE
    assert web.asked == []


def test_a_host_that_does_not_exist_or_does_not_answer_is_unreachable(tmp_path: Path, tls: tuple[Path, Path]) -> None:
    def nowhere(host: str, port: int) -> list[str]:
        raise OSError("Name or service not known")

    assert refused("https://nowhere.example/a", tmp_path, outside(tls, resolver=nowhere))[0] is (
        Reason.SOURCE_UNREACHABLE
    )
    assert refused("https://closed.example:1/a", tmp_path, outside(tls))[0] is Reason.SOURCE_UNREACHABLE


def test_a_model_on_the_web_is_fetched_with_its_shards_and_what_tokenizers_need(
    tmp_path: Path, web: Site, tls: tuple[Path, Path]
) -> None:
    web.put("/m", write_base(tmp_path / "model"))
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    web.files |= {"/m/model.safetensors.index.json": json.dumps(shards).encode(), "/m/tokenizer.json": b"{}"}
    web.files |= {"/m/model-1.safetensors": b"1", "/m/model-2.safetensors": b"2"}
    found = get(f"https://{HOST}:{web.port}/m", tmp_path / "out", outside(tls), layout=MODEL)
    assert set(found) == {path.removeprefix("/m/") for path in web.files}
