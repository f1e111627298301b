"""The part of the configuration that concerns the cluster."""

import pytest
from sheaf_gateway.__main__ import main
from sheaf_gateway.config import ConfigError, load_config


def test_a_gateway_follows_a_file_unless_told_otherwise():
    assert load_config(None, {"fleet_file": "f"}).kubernetes is None


def test_flags_are_enough_to_follow_a_cluster(tmp_path):
    config = load_config(None, {"fleet_file": "f", "namespace": "team", "kubeconfig": "k"})
    assert (config.kubernetes.enabled, config.kubernetes.namespace, str(config.kubernetes.kubeconfig)) == (
        True,
        "team",
        "k",
    )


def test_flags_are_laid_over_the_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"fleetFile": "f", "kubernetes": {"enabled": false, "namespace": "a", "kubeconfig": "k"}}')
    assert not load_config(path, {}).kubernetes.enabled
    found = load_config(path, {"namespace": "b"}).kubernetes
    assert (found.enabled, found.namespace, str(found.kubeconfig)) == (True, "b", "k")


@pytest.mark.parametrize("declared", ['"yes"', '{"namespace": "Team_A"}', '{"namespace": ""}', '{"name": "x"}', "[]"])
def test_a_wrong_cluster_is_named(tmp_path, declared):
    path = tmp_path / "config.json"
    path.write_text(f'{{"fleetFile": "f", "kubernetes": {declared}}}')
    with pytest.raises(ConfigError, match="kubernetes"):
        load_config(path, {})


def test_a_cluster_that_cannot_be_used_is_one_line_and_exit_1(tmp_path, capfd):
    assert (
        main(
            [
                "--fleet-file",
                str(tmp_path / "f.json"),
                "--kubeconfig",
                str(tmp_path / "none"),
                "--listen",
                "127.0.0.1:0",
            ]
        )
        == 1
    )
    said = capfd.readouterr().err
    assert said.startswith("sheaf-gateway: kubernetes: ")
    assert said.count("\n") == 1
