"""Peers do what their sources say; the planner's speeds are the timing presets; a Model is explained."""

import pytest
from sheaf.cli.errors import CliError
from sheaf.cli.explain import explain
from sheaf.cli.explain_model import decisions, lines
from sheaf.cli.main import run
from sheaf.simulator.peers import Apa, Hpa, Kpa
from sheaf.simulator.profiles import BY_ACCELERATOR
from sheaf.simulator.scaling import speed_of
from sheaf_engine.timing import PRESETS
from sheaf_operator.planning.autoscaling import speeds


def test_the_planner_knows_the_presets_of_the_timing_model():
    assert {name: speed_of(profile) for name, profile in PRESETS.items()} == dict(speeds.PRESETS)
    assert {key: name for key, name in speeds.BY_ACCELERATOR.items() if key != "cpu"} == BY_ACCELERATOR


def test_hpa_keeps_within_its_tolerance_doubles_at_most_and_falls_to_the_peak_of_five_minutes():
    hpa = Hpa(10.0)
    assert hpa.replicas(43.0, 4, 4, 0.0) == 4
    assert hpa.replicas(400.0, 4, 4, 5.0) == 4
    assert hpa.replicas(400.0, 4, 4, 15.0) == 8
    assert hpa.replicas(400.0, 8, 4, 30.0) == 16
    assert hpa.replicas(400.0, 1, 1, 45.0) == 5
    assert hpa.replicas(10.0, 16, 16, 300.0) == 16
    assert [Hpa(10.0).replicas(0.0, 8, 8, 0.0), Kpa(10.0).replicas(0.0, 8, 8, 0.0)] == [8, 8]
    assert hpa.replicas(10.0, 16, 16, 360.0) == 1


def test_kpa_panics_at_twice_what_is_ready_and_does_not_fall_until_it_is_over():
    kpa = Kpa(10.0)
    assert kpa.replicas(14.0, 2, 2, 0.0) == 2
    assert kpa.replicas(70.0, 2, 2, 10.0) == 10
    assert kpa.replicas(0.0, 10, 10, 30.0) == 10
    assert kpa.replicas(0.0, 10, 10, 60.0) == 10
    assert kpa.replicas(0.0, 10, 10, 80.0) == 5


def test_apa_follows_the_ratio_within_a_factor_of_two_and_cools_down():
    apa = Apa(10.0)
    assert apa.replicas(42.0, 4, 4, 0.0) == 4
    assert apa.replicas(1000.0, 4, 4, 5.0) == 4
    assert apa.replicas(1000.0, 4, 4, 61.0) == 8
    assert apa.replicas(0.0, 8, 8, 130.0) == 8
    assert apa.replicas(0.0, 8, 8, 500.0) == 4


def test_a_model_is_explained_with_its_last_decisions():
    record = {
        "policy": "steady",
        "desiredReplicas": 3,
        "coldStart": "1m30s",
        "decisions": [{"at": "2026-01-01T00:00:00Z", "before": 1, "after": 3, "reason": "SLO", "message": "because"}],
    }
    model = {"metadata": {"name": "m"}, "spec": {}, "status": {"readyReplicas": 2, "autoscaling": record}}
    said = list(lines(model, {"arrivalRate": 1.5, "running": 4}))
    assert said[0] == "m: AutoscalingPolicy steady wants 3 replicas, 2 serve"
    assert said[-1].startswith("asked now: 1.50 requests/s; 4 running")
    assert decisions(record).row_count == 1
    assert list(lines({"metadata": {"name": "m"}}, {})) == [
        "m: 1 replicas declared, 0 serve; no AutoscalingPolicy decides"
    ]


def test_explain_takes_a_second_name_after_the_word_model_only():
    with pytest.raises(CliError, match="sheaf explain model b"):
        explain("a", "b")


def test_a_plan_names_pods_and_their_price(tmp_path, capsys):
    trace = tmp_path / "trace.jsonl"
    rows = [f'{{"arrival": {n}, "input_tokens": {100 + 900 * (n % 2)}, "output_tokens": 50}}' for n in range(1, 60)]
    trace.write_text("\n".join(rows))
    assert run(["plan", "--trace", str(trace), "--kinds", "nvidia-l4,nvidia-h100"]) == 0
    assert "1 nvidia-l4: 0.70 an hour" in capsys.readouterr().out
    assert run(["plan", "--trace", str(trace), "--kinds", "abacus"]) == 1
    assert run(["plan", "--trace", str(trace), "--ttft", "0.001"]) == 1
