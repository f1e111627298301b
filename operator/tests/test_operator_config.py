"""The configuration: the short form works, everything wrong is one line that names the field."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sheaf_operator.__main__ import main
from sheaf_operator.config import ConfigError, OperatorConfig, own_identity, read_config


def content(tmp_path: Path, **changes: object) -> dict[str, object]:
    token = tmp_path / "token"
    token.write_text("secret\n")
    pods = {"images": {"agent": "agent:1"}, "agentTokenSecret": "agent-token"}
    return {"agentTokenFile": str(token), "pods": pods, **changes}


def written(tmp_path: Path, value: object) -> Path:
    path = tmp_path / "operator.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
    return path


def test_the_short_form_has_defaults(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, content(tmp_path)))
    assert config.namespace is None
    assert config.lease_name == "sheaf-operator"
    assert config.address == (None, 8080)


def test_secrets_may_have_every_name_that_kubernetes_allows(tmp_path: Path) -> None:
    images = {"agent": "agent:1", "pullSecrets": ["my.registry", "x" * 100]}
    pods = {"images": images, "agentTokenSecret": "my.secret", "s3": {"secret": "my.keys"}, "hf": {"secret": "my.hub"}}
    config = read_config(written(tmp_path, content(tmp_path, pods=pods)))
    assert config.pods.agent_token_secret == "my.secret"
    assert config.pods.images.pull_secrets == ("my.registry", "x" * 100)


@pytest.mark.parametrize(
    ("listen", "address"),
    [("127.0.0.1:9", ("127.0.0.1", 9)), ("[::1]:80", ("::1", 80)), (":0", (None, 0))],
)
def test_addresses_are_read(tmp_path: Path, listen: str, address: tuple[str | None, int]) -> None:
    assert read_config(written(tmp_path, content(tmp_path, listen=listen))).address == address


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"agentTokenFile": "/nowhere/token"}, r"agentTokenFile: /nowhere/token cannot be read .*; mount"),
        ({"colour": "red"}, r"colour: is no setting; remove it"),
        ({"pods": {"agentTokenSecret": "t"}}, r"pods\.images: is missing; add it"),
        ({"listen": "here"}, r"listen: "),
        ({"listen": ":99999"}, r"listen: :99999 names no port"),
        ({"namespace": "Not A Name"}, r"namespace: "),
        ({"pods": {"images": {"agent": "a"}, "agentTokenSecret": "my..secret"}}, r"pods\.agentTokenSecret: "),
        (
            {"pods": {"images": {"agent": "a"}, "agentTokenSecret": "t", "hostPaths": ["/mnt/../etc"]}},
            r"pods\.hostPaths\.0: '/mnt/\.\./etc' is not an absolute folder",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read_config(written(tmp_path, content(tmp_path, **changes)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a", "{", "a: [", "\x00", "&a [*a]"])
def test_what_is_no_mapping_is_said(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"mapping|neither JSON nor YAML"):
        read_config(written(tmp_path, text))


def test_an_empty_token_is_said(tmp_path: Path) -> None:
    made = content(tmp_path)
    (tmp_path / "token").write_text(" \n")
    with pytest.raises(ConfigError, match="is empty; write a token"):
        read_config(written(tmp_path, made))


def test_many_problems_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="and 4 more"):
        read_config(written(tmp_path, content(tmp_path, **{f"x{index}": 1 for index in range(9)})))


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(5 * 2**20)
    with pytest.raises(ConfigError, match="larger than"):
        read_config(path)


@given(st.dictionaries(st.text(max_size=20), st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20))))
def test_no_configuration_ends_in_another_error(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("config") / "c.yaml"
    path.write_text(yaml.safe_dump(value))
    with pytest.raises(ConfigError):
        read_config(path)


def test_identities_differ_and_fit_into_a_lease() -> None:
    first, second = own_identity(), own_identity()
    assert first != second
    assert len(first) <= 128


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "/nowhere.yaml"], r"error: /nowhere\.yaml: No such file"),
        (["--kubeconfig", "/nowhere"], r"error: kubeconfig /nowhere cannot be used: .*; name one that works"),
    ],
)
def test_the_process_says_one_line_and_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    made = written(tmp_path, content(tmp_path, namespace="x", listen="127.0.0.1:0"))
    assert main(["--config", str(made), *arguments]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert re.search(said, errors[0])


def test_every_setting_is_described() -> None:
    assert all(field.description for field in OperatorConfig.model_fields.values())
