"""Secrets come by file: the salt of tenants' caches and the URL of the Redis that gateways share."""

import pytest
from gateway_fixtures import parse  # noqa: F401
from sheaf_gateway.config import ConfigError, GatewayConfig
from sheaf_gateway.main import start


def config(folder, **fields) -> GatewayConfig:
    (folder / "fleet.json").write_text("{}")
    return GatewayConfig.model_validate({"listen": "127.0.0.1:0", "fleetFile": folder / "fleet.json", **fields})


async def started(folder, **fields):
    gateway = await start(config(folder, **fields))
    await gateway.stop(0.0)
    return gateway


async def test_gateways_with_one_secret_salt_alike_and_others_do_not(tmp_path):
    (tmp_path / "one").write_text("secret-one\n")
    (tmp_path / "other").write_text("secret-other")
    salts = [
        (await started(tmp_path, saltSecretFile=tmp_path / name)).inference.salts.of("gold")
        for name in ("one", "one", "other")
    ]
    assert salts[0] == salts[1] != salts[2]


async def test_limits_are_shared_where_a_redis_is_named(tmp_path):
    (tmp_path / "url").write_text("redis://127.0.0.1:1/0\n")
    shared = {"urlFile": tmp_path / "url", "failOpen": False}
    found = (await started(tmp_path, sharedLimits=shared)).inference.shared
    assert found is not None
    assert not found.fail_open
    assert (await started(tmp_path)).inference.shared is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "one word"),
        (b"two words", "one word"),
        (b"\xff", "one word"),
        (b"http://127.0.0.1", "not the URL of a Redis"),
        (None, "No such file"),
    ],
)
async def test_a_bad_file_is_named_and_its_content_is_not(tmp_path, content, words):
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as refused:
        await start(config(tmp_path, sharedLimits={"urlFile": path}))
    assert "http:" not in str(refused.value)
    assert str(path) in str(refused.value)
