"""s3:// and hf:// sources and base models: what arrives is exactly what is needed, and what goes wrong says why."""

# ruff: noqa: F811 - pytest hands fixtures in by the name of the argument

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
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
from moto.server import ThreadedMotoServer
from sheaf_crds.digest import directory_digest
from sheaf_engine.agent import layout
from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.fetch_hf import fetch as warm_hub  # noqa: F401 - the import is slow
from sheaf_engine.agent.model_fetch import fetch_model, folder_name
from sheaf_engine.agent.transfer import Budget, Outside


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch, adapter: Path) -> Outside:
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    client = boto3.client("s3", endpoint_url=s3)
    client.create_bucket(Bucket="adapters")
    for file in adapter.iterdir():
        client.upload_file(str(file), "adapters", f"team/pirate/{file.name}")
        client.upload_file(str(file), "adapters", f"team/pirate-2/{file.name}")
    client.put_object(Bucket="adapters", Key="team/pirate/../../escape", Body=b"x")
    client.put_object(Bucket="adapters", Key="pickled/adapter_config.json", Body=b"{}")
    client.put_object(Bucket="adapters", Key="pickled/adapter_model.bin", Body=b"x")
    client.close()
    return Outside(s3_endpoint_url=s3)


@pytest.mark.timeout(20)
def test_a_prefix_of_a_bucket_gives_its_two_files(tmp_path: Path, adapter: Path, bucket: Outside) -> None:
    assert get("s3://adapters/team/pirate", tmp_path / "out", bucket) == NAMES
    assert directory_digest(tmp_path / "out") == directory_digest(adapter)
    assert not (tmp_path / "escape").exists()


@pytest.mark.timeout(20)
def test_what_a_bucket_does_not_have_is_told(tmp_path: Path, bucket: Outside) -> None:
    assert refused("s3://no-such-bucket/a", tmp_path, bucket)[0] is Reason.SOURCE_NOT_FOUND
    assert refused("s3://adapters/team/pir", tmp_path, bucket)[0] is Reason.FILES_MISSING
    assert refused("s3://adapters/pickled", tmp_path, bucket)[0] is Reason.PICKLED_WEIGHTS
    assert refused("s3://adapters/team/pirate", tmp_path, bucket, limit=10)[0] is Reason.SIZE_LIMIT_EXCEEDED


@pytest.mark.timeout(20)
def test_a_store_that_is_away_is_told(tmp_path: Path, bucket: Outside) -> None:
    reason, message = refused("s3://adapters/a", tmp_path, Outside(s3_endpoint_url="http://127.0.0.1:1"))
    assert reason is Reason.SOURCE_UNREACHABLE
    assert "127.0.0.1:1" in message


# hf://


def on_hub(site: Site, folder: Path, start: str = "", others: Sequence[str] = ()) -> Outside:
    commit = "c" * 40
    names = [file.name for file in folder.iterdir()]
    beside = [{"rfilename": name, "size": 1} for name in others]
    info = {
        "id": "org/pirate",
        "_id": "1",
        "sha": commit,
        "siblings": [*beside, *({"rfilename": start + n, "size": (folder / n).stat().st_size} for n in names)],
    }
    site.files["/api/models/org/pirate"] = json.dumps(info).encode()
    site.files["/api/models/org/pirate/revision/v1"] = json.dumps(info).encode()
    site.headers |= {"x-repo-commit": commit, "etag": '"e"', "content-type": "application/json"}
    site.put(f"/org/pirate/resolve/{commit}{'/' + start.rstrip('/') if start else ''}", folder)
    return Outside(hf_endpoint=f"http://127.0.0.1:{site.port}")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("source", "start"), [("hf://org/pirate", ""), ("hf://org/pirate@v1/sub/dir", "sub/dir/")])
def test_a_repository_of_a_hub_gives_its_two_files(
    tmp_path: Path, adapter: Path, hub: Site, source: str, start: str
) -> None:
    (adapter / "training_args.bin").write_bytes(b"pickle")
    reach = on_hub(hub, adapter, start)
    found = get(source, tmp_path / "out", reach)
    assert [name for name in found if not name.startswith(".cache")] == NAMES
    assert not any("training_args" in path for path in hub.asked)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("source", "start"), [("hf://org/pirate", ""), ("hf://org/pirate@v1/sub/dir", "sub/dir/")])
def test_a_repository_of_many_files_is_looked_at_near_the_folder_that_is_named(
    tmp_path: Path, adapter: Path, hub: Site, source: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MOST_FILES", 5)
    reach = on_hub(hub, adapter, start, [f"adapters/{n}/adapter_config.json" for n in range(9)])
    assert [name for name in get(source, tmp_path / "out", reach) if not name.startswith(".cache")] == NAMES


@pytest.mark.timeout(20)
def test_what_is_missing_among_too_many_files_says_how_many_were_looked_at(
    tmp_path: Path, adapter: Path, hub: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MOST_FILES", 5)
    reach = on_hub(hub, adapter, "deep/", [f"deep/{n}/notes.txt" for n in range(9)])
    found, message = refused("hf://org/pirate", tmp_path, reach)
    assert found is Reason.FILES_MISSING
    assert "only 5 are looked at; name a folder that has fewer" in message


@pytest.mark.timeout(20)
def test_sizes_of_a_repository_are_checked_before_anything_is_downloaded(
    tmp_path: Path, adapter: Path, hub: Site
) -> None:
    reach = on_hub(hub, adapter)
    assert refused("hf://org/pirate", tmp_path, reach, limit=10)[0] is Reason.SIZE_LIMIT_EXCEEDED
    assert not any("resolve" in path for path in hub.asked)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, Reason.SOURCE_NOT_FOUND), (403, Reason.SOURCE_DENIED), (500, Reason.SOURCE_UNREACHABLE)],
)
def test_what_a_hub_refuses_is_told(tmp_path: Path, hub: Site, status: int, reason: Reason) -> None:
    hub.status["/api/models/org/gone"] = status
    found, message = refused("hf://org/gone", tmp_path, Outside(hf_endpoint=f"http://127.0.0.1:{hub.port}"))
    assert found is reason
    assert "hf://org/gone" in message


@pytest.mark.timeout(20)
def test_a_hub_that_is_away_is_told_at_once(tmp_path: Path) -> None:
    reason, _ = refused("hf://org/pirate", tmp_path, Outside(hf_endpoint="http://127.0.0.1:1"))
    assert reason is Reason.SOURCE_UNREACHABLE


# models


@pytest.mark.timeout(20)
def test_a_model_is_fetched_once_into_a_folder_of_its_own(tmp_path: Path, hub: Site) -> None:
    model = write_base(tmp_path / "model")
    for name in ("model.safetensors", "tokenizer.json", "modeling_evil.py", "pytorch_model.bin"):
        (model / name).write_bytes(b"{}")
    reach = on_hub(hub, model)
    folder, new = fetch_model("hf://org/pirate", tmp_path / "to", reach, Budget.of(10**6, 5.0))
    assert new
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    asked = len(hub.asked)
    assert fetch_model("hf://org/pirate", tmp_path / "to", reach, Budget.of(10**6, 5.0)) == (folder, False)
    assert len(hub.asked) == asked


@pytest.mark.timeout(20)
def test_pods_that_share_a_folder_fetch_a_model_once_and_mend_what_a_killed_one_left(tmp_path: Path, hub: Site) -> None:
    model = write_base(tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"{}")
    reach = on_hub(hub, model)
    left = tmp_path / "to" / f".incoming-{folder_name('hf://org/pirate')}"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    with ThreadPoolExecutor(4) as pods:
        fetches = [
            pods.submit(fetch_model, "hf://org/pirate", tmp_path / "to", reach, Budget.of(10**6, 10.0))
            for _ in range(4)
        ]
    folders, new = zip(*(fetch.result() for fetch in fetches), strict=True)
    assert (len(set(folders)), sum(new)) == (1, 1)
    assert sorted(f.name for f in folders[0].iterdir()) == ["config.json", "model.safetensors"]
    assert not left.exists()


@pytest.mark.timeout(20)
def test_a_model_that_cannot_be_fetched_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(AdapterError):
        fetch_model("hf://org/m", tmp_path, Outside(hf_endpoint="http://127.0.0.1:1"), Budget.of(10**6, 5.0))
    assert [f.name for f in tmp_path.iterdir() if not f.name.endswith(".lock")] == []


def test_a_model_on_this_machine_is_used_where_it_is(tmp_path: Path) -> None:
    model = write_base(tmp_path / "sources" / "model")
    assert fetch_model(f"file://{model}", tmp_path / "to", local(tmp_path), Budget.of(1, 1.0)) == (model, False)
    (model / "config.json").unlink()
    with pytest.raises(AdapterError, match=r"no config\.json"):
        fetch_model(f"file://{model}", tmp_path / "to", local(tmp_path), Budget.of(1, 1.0))
