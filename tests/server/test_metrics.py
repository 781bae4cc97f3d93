from dataclasses import fields, replace
from typing import Any

from decoding.engine import EngineStats


def labels_of(text: str, name: str) -> set[str]:
    return {line.rsplit(" ", 1)[0] for line in text.splitlines() if line.startswith(name)}


def test_labels_stay_bounded_whatever_clients_send(stub_client: Any):
    client = stub_client()
    for number in range(20):
        client.get(f"/nope-{number}")
        client.get(f"/v1/items/{number}")
        client.get(f"/problems/p{number}")
        # Made-up ones are refused before they are counted.
        client.request(f"METHOD{number}", "/v1/search")
        client.request("PROPFIND", "/v1/search")
        client.post("/v1/search", json={"query": f"query {number}"})
    text = client.get("/metrics").text
    counts = labels_of(text, "onesearch_request_seconds_count")
    routes = {line.split('route="')[1].split('"')[0] for line in counts}
    assert routes == {"other", "/v1/items/{item_id:path}", "/problems/{slug}", "/v1/search"}
    methods = {line.split('method="')[1].split('"')[0] for line in counts}
    assert methods == {"GET", "POST", "other"}
    assert "nope" not in text
    assert "query 7" not in text


def test_what_the_engine_has_done_are_counters_and_what_it_does_are_gauges(stub_client: Any):
    lines = stub_client().get("/metrics").text.splitlines()
    for name, value in (
        *(("queued_prompts", 2.0), ("queued_rows", 20.0), ("running_prompts", 3.0)),
        ("wave_seconds", 0.25),
    ):
        assert f"# TYPE onesearch_engine_{name} gauge" in lines
        assert f"onesearch_engine_{name} {value}" in lines
    for name, value in (
        *(("waves", 5.0), ("prompts", 40.0), ("rows", 400.0), ("expired", 6.0), ("shed", 7.0)),
        *(("cancelled", 8.0), ("failed", 9.0), ("swaps", 1.0)),
    ):
        assert f"# TYPE onesearch_engine_{name}_total counter" in lines
        assert f"onesearch_engine_{name}_total {value}" in lines
    shown = [line for line in lines if line.startswith("onesearch_engine_")]
    assert len(shown) == len(fields(EngineStats))


def test_degradations_are_there_before_they_happen(plain: Any):
    assert 'onesearch_degraded_total{reason="engine_error"} 0.0' in plain.get("/metrics").text


def test_the_build_is_what_is_being_served_now(stub_client: Any, stub: Any):
    client = stub_client()

    def build() -> str:
        [line] = [
            line
            for line in client.get("/metrics").text.splitlines()
            if line.startswith("onesearch_build_info{")
        ]
        return line

    assert 'model_version="m1"' in build()
    stub.live = replace(stub.live, model_version="m2", index_version="i2")
    assert 'model_version="m2"' in build()
    assert 'index_version="i2"' in build()
    stub.live = None
    assert 'model_version=""' in build()


def test_stages_and_caches_are_counted(degraded_client: Any):
    client = degraded_client()
    for _ in range(2):
        client.post("/v1/search", json={"query": "desk", "filters": {"color": ["red"]}})
    text = client.get("/metrics").text
    for stage in ("prepare", "engine", "rank"):
        assert f'onesearch_stage_seconds_count{{stage="{stage}"}} 2.0' in text
    for result in ("hit", "miss"):
        assert f'onesearch_cache_total{{cache="query",result="{result}"}} 1.0' in text
