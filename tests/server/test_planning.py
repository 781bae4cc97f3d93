"""The planner's arithmetic by hand on tables of round numbers; shipped tables; wrong input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from index.errors import ConfigError
from loadtest import planning_table
from server.cli.main import main
from server.planning import Demand, Figure, Plan, engine_seconds, plan
from server.planning_tables import (
    SHIPPED,
    EngineTime,
    Footprint,
    Rate,
    RedisBytes,
    Serving,
    Shape,
    Tables,
    shipped,
    with_measured,
)

SMALL = Shape(2, 4, 8, 2, 1, 2, vocabulary=10)
LARGE = replace(SMALL, layers=4)
TABLES = Tables(
    models={"small": SMALL, "large": LARGE},
    engine=(
        EngineTime("cpu", "small", 32, 8, 16.0, "engine.json"),
        EngineTime("cpu", "small", 128, 8, 40.0, "engine.json"),
        EngineTime("cpu", "large", 32, 8, 160.0, "engine.json"),
        EngineTime("cuda", "small", 32, 8, 8.0, "card.json"),
    ),
    serving=(
        Serving(
            *("small", 32, 5000, 2, True),
            (Rate(50, 5, 10), Rate(100, 8, 20), Rate(150, 9, 40), Rate(200, 50, 300, 90.0)),
            "serving.json",
        ),
    ),
    footprint=Footprint(100e6, 1000.0, 10.0, "footprint.json"),
    redis=RedisBytes(600, 400, 300, 200, 100, 500, 1000, "footprint.json"),
    machines={"serving.json": "2 cores Round", "engine.json": "2 cores Round", "card.json": "Card"},
)
DEMAND = Demand(500, 32, "small", 5000, 50.0)


def figure(found: Plan, name: str) -> Figure:
    [one] = [one for one in found.figures if one.name == name]
    return one


def test_what_was_measured_is_taken_as_it_is():
    found = plan(DEMAND, TABLES)
    # 150 a second within 50 ms, 30 % free: 105; 500 / 105 = 4.8, and one to spare.
    assert (found.searches_per_replica, found.replicas) == (105.0, 6)
    assert (found.cores_per_replica, found.gpus_per_replica) == (2, 0)
    assert not found.to_json()["extrapolated"]
    assert found.machines == {"serving.json": "2 cores Round"}


@pytest.mark.parametrize(
    ("latency", "rate"), [(50, 150), (39, 100), (20, 100), (10, 50), (900, 150)]
)
def test_the_latency_chooses_the_measured_rate(latency: float, rate: float):
    """The rate at which a tenth is not answered whole does not count, however late one may be."""
    found = plan(replace(DEMAND, latency_ms=latency, headroom=0.0, spare=0), TABLES)
    assert found.searches_per_replica == rate


def test_headroom_and_spares():
    found = plan(replace(DEMAND, headroom=0.0, spare=2), TABLES)
    assert found.replicas == 4 + 2
    assert plan(replace(DEMAND, searches_per_s=0.1, spare=0), TABLES).replicas == 1


def test_another_beam_has_its_own_engine_time():
    found = plan(replace(DEMAND, beam=128, latency_ms=60.0, headroom=0.0), TABLES)
    # 2 cores / 150 = 13.33 ms of which the engine 16 / 8 = 2; with 40 / 8 = 5: 16.33 ms.
    assert found.searches_per_replica == pytest.approx(2 / 0.0163333, rel=1e-3)
    assert figure(found, "engine, small, beam 128, cpu").value == pytest.approx(0.005)
    assert found.to_json()["extrapolated"]
    # 40 ms become 40 · 150 / 122.4 = 49 ms, so 45 ms needs the next lower rate.
    calmer = plan(replace(DEMAND, beam=128, latency_ms=45.0, headroom=0.0), TABLES)
    assert calmer.searches_per_replica == pytest.approx(2 / 0.023, rel=1e-3)


def test_an_engine_cannot_do_more_than_its_threads():
    found = plan(replace(DEMAND, model="large", latency_ms=500.0, headroom=0.0), TABLES)
    # 11.33 ms of the gateway and 20 of the engine would be 63.8; one engine thread does 50.
    assert found.searches_per_replica == pytest.approx(50.0)


def test_a_gpu_takes_the_engines_part():
    found = plan(replace(DEMAND, device="cuda", headroom=0.0), TABLES)
    # 1 / (11.33 ms on two cores + 8 / 8 ms)
    assert found.searches_per_replica == pytest.approx(1 / (0.0113333 / 2 + 0.001), rel=1e-3)
    assert found.gpus_per_replica == 1
    assert found.gpu_memory_bytes > 0
    assert set(found.machines) == {"serving.json", "engine.json", "card.json"}


def test_engine_times_between_and_beyond_the_measured_beams():
    between = engine_seconds(TABLES, "cpu", "small", 64, SMALL)
    assert between.kind == "between measurements"
    assert between.value == pytest.approx((0.002 * 0.005) ** 0.5)
    beyond = engine_seconds(TABLES, "cpu", "small", 512, SMALL)
    assert (beyond.kind, beyond.value) == ("extrapolated", pytest.approx(0.02))
    below = engine_seconds(TABLES, "cpu", "small", 8, SMALL)
    assert (below.kind, below.value) == ("extrapolated", pytest.approx(0.002))


def test_an_unknown_model_is_scaled_by_its_weights():
    twice = replace(LARGE, layers=8)
    found = engine_seconds(TABLES, "cpu", "mine", 32, twice)
    assert (found.kind, found.value) == ("extrapolated", pytest.approx(0.04))
    assert "large, times 2 for the weights" in found.why


def test_shapes():
    # 2 layers of 2 · 4 · 2 · (2 + 1) + 3 · 4 · 8, and two matrices of 10 · 4.
    assert (SMALL.layer_parameters, SMALL.parameters) == (288, 368)
    # Keys and values of one head of two, in two layers.
    assert SMALL.key_values == 8


def test_a_catalogue_that_is_much_larger_is_no_measurement():
    assert not plan(replace(DEMAND, items=10_000), TABLES).to_json()["extrapolated"]
    found = plan(replace(DEMAND, items=10_001), TABLES)
    assert figure(found, "items").kind == "extrapolated"


def test_memory_of_a_replica():
    found = plan(replace(DEMAND, items=1_000_000, sids=500_000), TABLES)
    values = {one.name: one.value for one in found.figures}
    assert values["the program"] == 100e6
    assert values["catalogue"] == 1e9
    assert "of which the trie 5,000,000" in figure(found, "catalogue").why
    assert values["weights"] == 368 * 4
    # 512 rows: 16 prompts of 64 tokens, and five levels of each row; 8 numbers of 4 bytes.
    assert values["keys and values"] == (16 * 64 + 512 * 5) * 32
    assert values["changes until a merge"] == 0.05e9
    assert values["a second generation"] == 1e9 + 368 * 4 + 128 * 1024**2
    assert found.memory_bytes == 5 * 512 * 1024**2


def test_redis_is_bounded_where_its_streams_are():
    asked = replace(DEMAND, users=10_000, events_per_s=1.0, queries=300_000)
    found = plan(asked, TABLES)
    values = {one.name.removeprefix("Redis: "): one.value for one in found.figures}
    assert values["keywords"] == 300_000 * 600
    assert values["answers for training"] == 200_000 * 400
    assert values["keyword jobs"] == 100_000 * 300
    assert values["events"] == 500_000 * 200
    assert values["ids of events"] == 86_400 * 100
    assert values["exposures"] == 200_000 * 500
    assert values["recent items of users"] == 10_000 * 1000
    total = 180e6 + 80e6 + 30e6 + 100e6 + 8.64e6 + 100e6 + 10e6
    assert values["room"] == pytest.approx(0.3 * total)
    step = 64 * 1024**2
    assert found.redis_maxmemory == -(-1.3 * total // step) * step


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "huge"}, "model 'huge' is none of large, small, nor a checkpoint directory"),
        ({"latency_ms": 1.0}, "the calmest measurement has 10 ms, at 50 searches a second"),
        ({"searches_per_s": 0.0}, "searches per second must be above 0"),
        ({"beam": 2000}, "beam 2000: 1 to 1024"),
        ({"headroom": 1.0}, "headroom 1: from 0 to below 1"),
        ({"items": 0}, "items 0: at least 1"),
        ({"spare": -1}, "counts are not negative"),
    ],
)
def test_wrong_demands_are_one_line(change: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        plan(replace(DEMAND, **change), TABLES)


def test_own_tables_go_over_the_shipped_ones(tmp_path: Path):
    file = tmp_path / "mine.json"
    own = {"serving": [TABLES.to_json()["serving"][0] | {"source": "mine.json"}]}
    file.write_text(json.dumps(own))
    found = with_measured(shipped(), file, "small", 32, 5000)
    assert [one.source for one in found.serving] == ["mine.json"]
    assert found.engine == shipped().engine


LOADTEST = Path(__file__).parents[2] / "docs" / "measurements" / "loadtest.json"


def test_a_load_test_of_ones_own_decides():
    tables = with_measured(shipped(), LOADTEST, "small", 32, 6000)
    [serving] = tables.serving
    assert serving.source == str(LOADTEST)
    report = json.loads(LOADTEST.read_text())
    level = {phase["phase"]: phase for phase in report["phases"]}["80%"]
    search = level["kinds"]["search"]
    [rate] = [one for one in serving.rates if one.searches_per_s == level["searches_per_s"]]
    assert (rate.p50_ms, rate.p99_ms) == (search["p50_ms"], search["p99_ms"])
    found = plan(Demand(500, 32, "small", 6000, rate.p99_ms, headroom=0.0), tables)
    assert found.searches_per_replica >= rate.searches_per_s
    assert not found.to_json()["extrapolated"]
    measured = [one for one in found.figures if str(LOADTEST) in one.why]
    assert [one.kind for one in measured] == ["measured"]


@pytest.mark.parametrize(
    "phases", [[], [{"phase": "warm", "kinds": {}}], [{"kinds": {"search": {"p99_ms": 1}}}], [3]]
)
def test_a_load_test_without_figures_is_refused(tmp_path: Path, phases: list[Any]):
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"machine": {"cores": 2}, "phases": phases}))
    with pytest.raises(ConfigError, match="loadtest run"):
        with_measured(shipped(), file, "small", 32, 6000)


def test_own_reports_of_bench_go_over_the_shipped_ones(tmp_path: Path):
    engine = {
        "what": "engine, 2 layers, d 256, bfloat16",
        "setting": {"queries": 8, "beam": 32},
        "ours": 1.0,
        "by_threads": {"ours": {"1": 1.5, "4": 1.0}},
    }
    load = {
        "what": "p99 of answers under load",
        "setting": {"load": "80%", "requests/s": 400},
        "ours": 20.0,
        "p50_ms": 5.0,
        "percent": {"whole": 100.0},
    }
    after = load | {"setting": {"load": "80% after 400%", "requests/s": 400}}
    file = tmp_path / "report.json"
    report = {"machine": {"cpu": "Own", "cores": 8}, "rows": [engine, load, after]}
    file.write_text(json.dumps(report))
    tables = with_measured(shipped(), file, "small", 48, 900)
    assert tables.serving == (
        Serving("small", 48, 900, 8, True, (Rate(400.0, 5.0, 20.0, 100.0),), str(file)),
    )
    [mine] = [one for one in tables.engine if one.source == str(file)]
    assert (mine.model, mine.ms, mine.threads) == ("small", 1.5, 1)
    assert len(tables.engine) == len(shipped().engine)
    found = plan(Demand(700, 48, "small", 900, 50.0), tables)
    assert (found.searches_per_replica, found.replicas) == (280.0, 4)
    assert found.machines[str(file)] == "8 cores Own"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "neither tables of the planner nor a report"),
        ("{}", "neither tables of the planner nor a report"),
        ('{"rows": []}', "neither tables of the planner nor a report"),
        ('{"speed": 3}', "neither tables of the planner nor a report"),
        ('{"serving": [{"model": "small"}]}', "serving.0.beam: "),
    ],
)
def test_wrong_own_tables_are_one_line(tmp_path: Path, text: str, told: str):
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        with_measured(shipped(), file, "small", 32, 5000)


def test_the_shipped_tables_are_what_the_measurements_say():
    assert planning_table.exported(planning_table.tables()) == SHIPPED.read_bytes(), (
        "run `python -m loadtest.planning_table`"
    )
    found = shipped()
    sources = {one.source for one in (*found.engine, *found.serving)}
    assert sources <= set(found.machines)
    assert {"small", "large"} <= set(found.models)


def test_the_command_line(capsys: pytest.CaptureFixture[str], tiny_pair: Any):
    load = ["plan", "--searches", "100", "--items", "6000", "--latency-ms", "250"]
    assert main([*load, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["replicas"] >= 2 and found["machines"]
    assert main([*load, "--values"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["gateways"]["cpu"]["replicas"] == found["replicas"]
    assert main([*load, "--users", "1000000"]) == 0
    assert f"{found['replicas']} gateways" in capsys.readouterr().out
    assert main([*load, "--model", str(tiny_pair.checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["extrapolated"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--device", "tpu"], "--device 'tpu' is none of cpu, cuda"),
        (["--model", "nothing/here"], "model 'nothing/here' is none of"),
        (["--measured", "nothing.json"], "--measured nothing.json: No such file"),
    ],
)
def test_wrong_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
):
    assert main(["plan", "--searches", "9", "--items", "9", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_directory_without_a_decoder_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')
    assert main(["plan", "--searches", "9", "--items", "9", "--model", str(tmp_path)]) == 2
    assert "config.json is no decoder's: 'hidden_size'" in capsys.readouterr().err
