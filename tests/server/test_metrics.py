from typing import Any


def labels_of(text: str, name: str) -> set[str]:
    return {line.rsplit(" ", 1)[0] for line in text.splitlines() if line.startswith(name)}


def test_labels_stay_bounded_whatever_clients_send(stub_client: Any):
    client = stub_client()
    for number in range(20):
        client.get(f"/nope-{number}")
        client.get(f"/v1/items/{number}")
        client.get(f"/problems/p{number}")
        client.request(f"METHOD{number}", "/v1/search")
        client.post("/v1/search", json={"query": f"query {number}"})
    text = client.get("/metrics").text
    counts = labels_of(text, "onesearch_request_seconds_count")
    routes = {line.split('route="')[1].split('"')[0] for line in counts}
    assert routes == {"other", "/v1/items/{item_id:path}", "/problems/{slug}", "/v1/search"}
    methods = {line.split('method="')[1].split('"')[0] for line in counts}
    assert methods == {"GET", "POST", "other"}
    assert "nope" not in text
    assert "query 7" not in text


def test_the_engine_and_the_build_are_shown(stub_client: Any):
    text = stub_client().get("/metrics").text
    assert "onesearch_engine_queued_prompts 2.0" in text
    assert 'model_version="m1"' in text
    assert 'onesearch_degraded_total{reason="engine_overload"} 0.0' in text


def test_stages_and_caches_are_counted(degraded_client: Any):
    client = degraded_client()
    for _ in range(2):
        client.post("/v1/search", json={"query": "desk", "filters": {"color": ["red"]}})
    text = client.get("/metrics").text
    for stage in ("prepare", "engine", "rank"):
        assert f'onesearch_stage_seconds_count{{stage="{stage}"}} 2.0' in text
    for cache in ("query", "filter"):
        for result in ("hit", "miss"):
            assert f'onesearch_cache_total{{cache="{cache}",result="{result}"}} 1.0' in text
