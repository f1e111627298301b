"""A declared fleet in virtual time: nothing is lost, the operator's plan is followed, and the same seed gives the same."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from sheaf.cli.main import run
from sheaf.simulator.calls import Call
from sheaf.simulator.figures import bounds_of, figures
from sheaf.simulator.market import Market, Zone
from sheaf.simulator.naming import named
from sheaf.simulator.outcome import quantile
from sheaf.simulator.picture import PictureError, picture
from sheaf.simulator.policies.registry import POLICIES
from sheaf.simulator.report import HEADINGS, cells, columns, page
from sheaf.simulator.slots import Slots
from sheaf.simulator.traces import Chat, conversations
from sheaf.simulator.world import Result, Setting, World
from sheaf_crds import SLO, Adapter, KubeObject, Model

MANIFEST = """apiVersion: sheaf.dev/v1alpha1
kind: Model
metadata: {name: chat}
spec:
  source: hf://org/model
  accelerators: [{type: nvidia-h100, count: 1}]
  replicas: 2
---
apiVersion: sheaf.dev/v1alpha1
kind: Adapter
metadata: {name: pirate}
spec: {modelRef: {name: chat}, source: "s3://adapters/pirate"}
"""


def meta(kind: str, name: str) -> dict[str, Any]:
    return {"name": name, "uid": f"{kind}-{name}", "generation": 1}


def model(**spec: Any) -> Model:
    spec = {"source": "hf://a/b", "accelerators": [{"type": "nvidia-h100"}], "replicas": 2, **spec}
    return Model.model_validate({"metadata": meta("Model", "chat"), "spec": spec})


def adapter(name: str = "pirate") -> Adapter:
    spec = {"modelRef": {"name": "chat"}, "source": f"s3://x/{name}"}
    return Adapter.model_validate({"metadata": meta("Adapter", name), "spec": spec})


def slo(**spec: Any) -> SLO:
    return SLO.model_validate({"metadata": meta("SLO", "fast"), "spec": spec})


def simulate(objects: list[KubeObject], *, seconds: float = 60.0, rate: float = 4.0, **setting: Any) -> Result:
    calls = conversations(Chat(seconds=seconds, rate=rate), 1)
    adapters = {item.name: "chat" for item in objects if isinstance(item, Adapter)}
    asked = named(calls, ["chat"], adapters, 1)
    return World(objects, POLICIES["sheaf"](1), Setting(cold_start_s=30.0, **setting)).run(asked)


def test_every_request_is_answered_once_and_paid_for():
    result = simulate([model(), adapter()])
    assert result.outcome.asked == len(conversations(Chat(seconds=60.0, rate=4.0), 1))
    assert result.outcome.refused == result.outcome.moved == 0
    assert {sample.ready for sample in result.samples} == {2}
    assert result.bill.pod_seconds == pytest.approx(2 * result.seconds)
    assert result.bill.money == pytest.approx(2 * result.seconds / 3600.0 * 7.0)


@pytest.mark.parametrize(
    ("limits", "least", "most"),
    [({"requestsPerMinute": 10}, 20, 100), ({"tokensPerMinute": 1000}, 1, 20), ({}, 238, 238)],
)
def test_what_an_slo_lets_a_tenant_ask_bounds_its_requests(limits, least, most):
    result = simulate([model(sloRef={"name": "fast"}), slo(limits=limits)], rate=4.0)
    served = result.outcome.asked - result.outcome.refused
    assert least <= served <= most


def test_limits_that_nothing_reaches_change_nothing():
    declared = [[model(sloRef={"name": "fast"}), slo(limits=limits)] for limits in ({}, {"maxConcurrent": 500})]
    plain, wide = (figures("x", simulate(objects), bounds_of(objects)) for objects in declared)
    assert plain == wide


@pytest.mark.parametrize(("begin", "most"), [("2024-01-01T07:59", 3), ("2024-01-06", 1)])
def test_schedules_go_by_the_time_at_which_the_trace_begins(tmp_path, begin, most):
    office = "{name: office, days: [Mon], start: '08:00', end: '18:00', minReplicas: 3}"
    policy = f"""---
apiVersion: sheaf.dev/v1alpha1
kind: AutoscalingPolicy
metadata: {{name: steady}}
spec: {{signal: Concurrency, target: 100, minReplicas: 1, maxReplicas: 4, schedules: [{office}]}}
"""
    manifest = MANIFEST.replace("replicas: 2", "replicas: 1\n  autoscalingPolicyRef: {name: steady}")
    (tmp_path / "chat.yaml").write_text(manifest + policy)
    out = tmp_path / "out"
    asked = ["--limit", "600", "--begin", begin, "--cold-start", "20", "--out", str(out)]
    assert run(["simulate", "-f", str(tmp_path / "chat.yaml"), *asked]) == 0
    assert json.loads((out / "figures.json").read_text())[0]["most_pods"] == most


def test_a_cold_fleet_holds_or_refuses_until_its_pods_serve():
    result = simulate([model()], warm=False)
    assert result.samples[0].ready == 0
    assert result.samples[-1].ready == 2
    assert result.outcome.asked == len(conversations(Chat(seconds=60.0, rate=4.0), 1))


def test_lost_spot_pods_are_replaced_and_their_streams_continued():
    zone = Zone("z", 10.0, (4,) * 10 + (1,) * 2 + (4,) * 100)
    spot = model(spot={"policy": "Required"}, replicas=4)
    result = simulate([spot], rate=8.0, market=Market((zone,), notice_s=0.0))
    assert result.bill.preemptions == 3
    assert result.outcome.moved > 0
    assert result.outcome.refused == 0
    assert min(sample.ready for sample in result.samples) == 1
    assert result.samples[-1].ready == 4
    assert result.bill.spot_seconds == pytest.approx(result.bill.pod_seconds)


def test_an_adapter_that_keeps_its_pod_busy_is_kept_on_more_pods():
    found = World([model(replicas=3), adapter()], POLICIES["sheaf"](1), Setting(cold_start_s=5.0))
    found.run([Call(float(n), "chat", ((n, 300),), 300, 400, "pirate") for n in range(200)])
    pinned = [member for member in found.fleet.members.values() if any(one.pinned for one in member.entries)]
    assert len(pinned) > 1
    assert found.fleet.index.adapter("pirate").status.desired_replicas > 1


def test_a_notice_lets_streams_finish():
    zone = Zone("z", 10.0, (4,) * 10 + (3,) * 100)
    spot = model(spot={"policy": "Preferred", "onDemandFloor": 1}, replicas=4, drainTimeout="60s")
    without, warned = (simulate([spot], rate=3.0, market=Market((zone,), notice_s=notice)) for notice in (0.0, 60.0))
    assert warned.outcome.moved <= without.outcome.moved
    assert 0.0 < warned.bill.spot_seconds < warned.bill.pod_seconds


def test_of_two_zones_the_planner_uses_the_one_that_has_capacity_and_covers_the_loss_on_demand():
    dry, wet = Zone("dry", 30.0, (2, 2, 0)), Zone("wet zone!", 30.0, (4,))
    spot = model(spot={"policy": "Preferred", "overProvision": 0}, replicas=2)
    result = simulate([spot], seconds=300.0, market=Market((dry, wet), notice_s=0.0), warm=False)
    assert result.bill.preemptions == 1
    assert result.bill.spot_seconds > 0.5 * result.bill.pod_seconds
    assert (result.samples[-1].ready, result.samples[-1].spot) == (2, 1)


def test_a_pod_that_waited_for_spot_and_found_it_starts_where_it_is():
    late, dry = Zone("a", 40.0, (0, 1)), Zone("b", 40.0, (0,))
    spot = model(spot={"policy": "Required"}, replicas=1)
    result = simulate([spot], seconds=120.0, market=Market((late, dry), notice_s=0.0), warm=False)
    served = next(sample.at for sample in result.samples if sample.ready)
    assert 70.0 <= served <= 80.0


def test_a_full_queue_refuses_and_a_promise_that_cannot_be_kept_too():
    promise = slo(ttft={"p95": "100ms"}, queue={"maxRequests": 1, "maxWait": "1s"})
    tight = model(replicas=1, sloRef={"name": "fast"})
    world = World([tight, promise], POLICIES["sheaf"](1), Setting(cold_start_s=1.0))
    world._door.slots = Slots(2)
    result = world.run(named(conversations(Chat(seconds=20.0, rate=20.0), 1), ["chat"], {}, 1))
    assert result.outcome.refused > 0
    assert bounds_of([tight, promise]).ttft == 0.1
    assert figures("x", result, bounds_of([tight, promise])).attainment < 1.0


def test_a_prompt_that_no_pod_takes_is_counted_and_not_sent():
    short = model(engine={"name": "vllm", "args": ["--max-model-len=1024"]})
    assert simulate([short]).too_long > 0


def test_the_same_seed_gives_the_same_page_byte_for_byte():
    pages = []
    for _ in range(2):
        result = simulate([model(), adapter()], seconds=20.0)
        bounds = bounds_of([model()])
        pages.append(page("run", [(figures("sheaf", result, bounds), result)], bounds))
    assert pages[0] == pages[1]
    assert pages[0].count("<svg") == 5
    assert "http" not in pages[0].replace("http://www.w3.org/2000/svg", "")


def test_quantiles_are_values_that_were_seen():
    assert quantile([], 0.5) == 0.0
    assert [quantile([3.0, 1.0, 2.0, 4.0], share) for share in (0.0, 0.5, 0.75, 0.99, 1.0)] == [1.0, 2.0, 3.0, 4.0, 4.0]


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    path = tmp_path / "chat.yaml"
    path.write_text(MANIFEST)
    return path


def test_the_command_prints_a_table_and_writes_a_report(manifests, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["simulate", "-f", str(manifests), "--limit", "60", "--compare", "route=round-robin"]
    assert run([*arguments, "--out", str(out)]) == 0
    first = (out / "report.html").read_bytes()
    assert "round-robin" in capsys.readouterr().out
    assert [row["name"] for row in json.loads((out / "figures.json").read_text())] == ["sheaf", "round-robin"]
    assert len(list(out.glob("*.svg"))) == 5
    assert run([*arguments, "--out", str(out)]) == 0
    assert (out / "report.html").read_bytes() == first


def test_all_charts_in_one_picture(manifests, tmp_path, capsys):
    arguments = ["simulate", "-f", str(manifests), "--limit", "60", "--compare", "route=round-robin"]
    assert run([*arguments, "--plot", str(tmp_path / "x.svg")]) == 0
    svg = (tmp_path / "x.svg").read_text()
    ET.fromstring(svg)
    assert svg.count("<polyline") == 10
    assert run([*arguments, "--plot", str(tmp_path / "x.gif")]) == 2
    assert "name a file that ends in .svg or .png" in capsys.readouterr().err


def test_the_same_picture_as_png(manifests, tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "x.png"
    assert run(["simulate", "-f", str(manifests), "--limit", "60", "--plot", str(path)]) == 0
    with image.open(path) as found:
        assert found.size == (720, 24 + 5 * 204)
        assert len(found.getcolors(1 << 20)) > 5


def test_a_png_without_pillow_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(PictureError, match="install pillow, or name"):
        picture(".png", ["one"], {"Money spent": [[(0.0, 0.0), (1.0, 2.0)]]})
    with pytest.raises(PictureError, match="no ending is no kind of picture"):
        picture("", [], {})


def test_compared_runs_say_by_how_much_they_differ_from_the_first():
    result = simulate([model()], seconds=20.0)
    first = figures("sheaf", result, bounds_of([]))
    other = replace(first, name="other", ttft=(first.ttft[0] * 2, 0.0, 0.0), attainment=0.5, refused=3)
    shown = columns([first, other])
    assert shown[0] == cells(first)
    assert shown[1][0] == "other"
    assert shown[1][HEADINGS.index("TTFT p50")].endswith(" (+100%)")
    assert shown[1][HEADINGS.index("attained")].endswith(" pt)")
    assert shown[1][HEADINGS.index("refused")] == "3"
    assert shown[1][HEADINGS.index("cost")] == shown[0][HEADINGS.index("cost")]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trace", "/nowhere.jsonl"], "/nowhere.jsonl: cannot be read"),
        (["--compare", "route=best"], "no such routing policy"),
        (["--profile", "abacus"], "no such timing preset"),
        (["--prices", "/nowhere.json"], "cannot be read"),
    ],
)
def test_mistakes_are_one_line(manifests, more, said, capsys):
    assert run(["simulate", "-f", str(manifests), *more]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_trace_that_asks_for_an_unknown_name_is_refused(manifests, tmp_path, capsys):
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"arrival": 0, "input_tokens": 5, "output_tokens": 5, "model": "ghost"}\n')
    assert run(["simulate", "-f", str(manifests), "--trace", str(trace)]) == 1
    assert "'ghost', which no manifest declares" in capsys.readouterr().err
