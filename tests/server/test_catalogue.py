"""The catalogue changes while it is searched, over HTTP on a real tiny generation."""

import re
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from index.errors import ArtifactError
from index.live.catalogue import LiveSettings
from index.live.changes import Delete, Upsert
from server.generation import Generation

ITEMS = "/v1/items"
STOOL = {
    "item_id": "new/1",
    "title": "purple quartz stool",
    "brand": "Zed",
    "category": ["home", "stool"],
    "color": ["purple"],
    "price": 500.0,
    "stock": 4,
    "attributes": {"finish": ["matt"]},
}
ALL = [f"i{number}" for number in range(36)]
Changing = Callable[..., httpx.Client]


def search(client: httpx.Client, query: str = "desk", **fields: Any) -> dict[str, Any]:
    body = {"query": query, "limit": 100, "beam_width": 1024, **fields}
    response = client.post("/v1/search", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def found(client: httpx.Client, query: str = "desk", **fields: Any) -> dict[str, dict[str, Any]]:
    answer = search(client, query, **fields)
    assert answer["degraded"] == []
    hits = {hit["item_id"]: hit for hit in answer["hits"]}
    assert len(hits) == len(answer["hits"])
    return hits


def change(client: httpx.Client, method: str, **body: Any) -> dict[str, Any]:
    response = client.request(method, ITEMS, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def metric(client: httpx.Client, name: str) -> float:
    match = re.search(rf"^{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert match is not None, name
    return float(match.group(1))


def writer() -> psutil.Process:
    """The process that writes the catalogue of this one."""
    running = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    [nursery] = [one for one in running if "index.live.nursery" in one.cmdline()]
    [child] = nursery.children()
    return child


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_new_item_is_in_the_next_search(changing: Changing):
    client = changing()
    snapshot = client.get("/readyz").json()["index_version"]
    assert "new/1" not in found(client, "purple quartz stool")
    answer = change(client, "PUT", items=[STOOL])
    assert [answer["sequence"], answer["applied"], answer["rejected"]] == [1, 1, []]
    hits = found(client, "purple quartz stool", explain=True)
    assert len(hits) == 37
    hit = hits["new/1"]
    assert [hit["title"], hit["price"], hit["stock"]] == ["purple quartz stool", 500.0, 4]
    assert hit["explain"]["source"] == "beam"
    assert hit["sid"] == "<a_{}><b_{}><c_{}>".format(*hit["explain"]["codes"])
    assert set(found(client, filters={"color": ["Purple"]})) == {"new/1"}
    assert set(found(client, filters={"brand": ["zed"], "price_min": 400})) == {"new/1"}
    item = client.get(f"{ITEMS}/new/1").json()
    assert [item["attributes"], item["sid"]] == [{"finish": ["matt"]}, hit["sid"]]
    versions = {answer["index_version"], item["index_version"], search(client)["index_version"]}
    assert versions == {f"{snapshot}+1"}


def test_a_new_item_is_found_by_its_words_without_the_beam(changing: Changing):
    client = changing(retrieval_candidates=3)
    change(client, "PUT", items=[STOOL])
    hits = found(client, "purple quartz stool", beam_width=1, explain=True)
    assert "new/1" in hits
    assert hits["new/1"]["explain"]["features"]["lexical"] > 0
    assert search(client, "quartz")["notes"] != []
    assert not any("nothing in the query" in note for note in search(client, "quartz")["notes"])


def test_a_deleted_item_is_gone_from_everything(changing: Changing):
    client = changing()
    assert found(client)["i0"]["color"] == ["red"]
    assert client.delete(f"{ITEMS}/i0").json()["sequence"] == 1
    assert set(found(client)) == set(ALL) - {"i0"}
    assert "i0" not in found(client, filters={"color": ["red"]})
    assert client.get(f"{ITEMS}/i0").status_code == 404
    assert client.delete(f"{ITEMS}/i0").status_code == 404
    answer = search(client, history=["i0", "i1"])
    assert "history items not in the catalogue: 1" in answer["notes"]
    gone = change(client, "DELETE", item_ids=["i1", "i0", "i2"])
    assert [gone["applied"], gone["sequence"]] == [2, 3]
    assert [(bad["index"], bad["item_id"]) for bad in gone["rejected"]] == [(1, "i0")]
    assert set(found(client)) == set(ALL[3:])
    change(client, "PUT", items=[{"item_id": "i0", "title": "red oak desk"}])
    assert found(client)["i0"]["color"] == []


def test_without_items_there_are_no_hits_and_the_answer_says_so(changing: Changing):
    client = changing()
    change(client, "DELETE", item_ids=ALL)
    answer = search(client)
    assert [answer["hits"], answer["notes"]] == [[], ["the catalogue is empty"]]
    assert client.get("/readyz").json()["items"] == 0
    assert search(client, filters={"in_stock": True})["notes"] == ["no item passes the filters"]
    change(client, "PUT", items=[STOOL])
    assert set(found(client)) == {"new/1"}
    assert search(client, limit=5)["notes"] == [
        "only 1 item was found; a larger beam_width finds more"
    ]


def test_stock_and_price_hold_in_filters_and_in_answers(changing: Changing):
    client = changing()
    in_stock = found(client, filters={"in_stock": True})
    assert "i0" not in in_stock
    assert "i1" in in_stock
    change(client, "PATCH", items=[{"item_id": "i0", "stock": 9}, {"item_id": "i1", "stock": 0}])
    in_stock = found(client, filters={"in_stock": True})
    assert in_stock["i0"]["stock"] == 9
    assert "i1" not in in_stock
    assert found(client)["i1"]["stock"] == 0
    change(client, "PATCH", items=[{"item_id": "i0", "price": 777}])
    assert found(client, filters={"price_min": 700})["i0"]["price"] == 777.0
    assert "i0" not in found(client, filters={"price_max": 600})
    change(client, "PATCH", items=[{"item_id": "i0", "price": None, "stock": None}])
    item = client.get(f"{ITEMS}/i0").json()
    assert [item["price"], item["stock"], item["title"]] == [None, None, "red oak desk"]
    assert "i0" not in found(client, filters={"price_min": 0})


def test_a_replaced_item_has_its_new_words_only(changing: Changing):
    client = changing()
    change(client, "PUT", items=[STOOL | {"item_id": "i0"}])
    hits = found(client)
    assert len(hits) == 36
    assert [hits["i0"]["title"], hits["i0"]["color"]] == ["purple quartz stool", ["purple"]]
    assert "i0" not in found(client, filters={"color": ["red"]})


def test_searches_beside_changes_see_one_state_each(changing: Changing):
    client = changing(patience=0)
    base_url = client.base_url
    change(client, "PATCH", items=[{"item_id": i, "price": 0, "stock": 0} for i in ALL])
    stop, seen = threading.Event(), set[float]()

    def look(_: int) -> None:
        with httpx.Client(base_url=base_url, timeout=30) as own:
            while not stop.is_set():
                hits = found(own)
                known = {hit["price"] for name, hit in hits.items() if name in ALL}
                assert len(known) == 1, "a batch of changes was seen in part"
                assert all(hit["price"] == hit["stock"] for hit in hits.values())
                assert len(set(ALL) & set(hits)) == 36
                seen.update(known)

    def churn() -> None:
        with httpx.Client(base_url=base_url, timeout=30) as own:
            for turn in range(60):
                item = STOOL | {"item_id": f"t{turn}", "price": turn, "stock": turn}
                change(own, "PUT", items=[item])
                if turn % 2:
                    change(own, "DELETE", item_ids=[f"t{turn}"])

    with ThreadPoolExecutor(4) as threads:
        searching = [threads.submit(look, number) for number in range(3)]
        churning = threads.submit(churn)
        for number in range(1, 60):
            items = [{"item_id": i, "price": number, "stock": number} for i in ALL]
            change(client, "PATCH", items=items)
        churning.result()
        stop.set()
        for one in searching:
            one.result()
    assert len(seen) > 2
    assert len(found(client)) == 36 + 30


def test_merges_happen_beside_searches_and_change_nothing(changing: Changing):
    client = changing(merge_min_items=3, merge_share=0.01)
    change(client, "PUT", items=[STOOL | {"item_id": f"n{number}"} for number in range(4)])
    change(client, "DELETE", item_ids=["i0", "n0"])
    before = search(client)
    wait_until(lambda: metric(client, "onesearch_catalogue_merges_total") > 0)
    wait_until(lambda: metric(client, "onesearch_catalogue_merging") == 0)
    after = search(client)
    assert after["index_version"] == before["index_version"]
    assert {hit["item_id"] for hit in after["hits"]} == {hit["item_id"] for hit in before["hits"]}
    change(client, "PATCH", items=[{"item_id": "n1", "stock": 77}])
    assert found(client)["n1"]["stock"] == 77
    facts = client.get("/readyz").json()["catalogue"]
    assert [facts["sequence"], facts["merge_failed"]] == [7, False]


def test_one_server_changes_a_catalogue_others_may_read_it(changing: Changing):
    client = changing()
    change(client, "PUT", items=[STOOL])
    change(client, "DELETE", item_ids=["i0"])
    with pytest.raises(ArtifactError, match="open for changes in another process"):
        changing()
    reader = changing(catalogue_changes=False)
    assert set(found(reader)) == set(found(client))
    assert "catalogue" not in reader.get("/readyz").json()
    assert reader.delete(f"{ITEMS}/i1").status_code == 403


def test_changes_are_kept_over_closing_and_opening(own_pair: tuple[Path, Path]):
    first = Generation.open(*own_pair, changes=LiveSettings())
    assert first.catalogue is not None
    first.catalogue.apply([Upsert(STOOL), Delete("i0")])
    version = first.view.version
    first.close()
    second = Generation.open(*own_pair, changes=LiveSettings())
    assert [second.view.version, second.view.n_items] == [version, 36]
    second.close()


def test_a_full_disk_is_told_and_searches_go_on(changing: Changing):
    client = changing(retry_after_s=5)
    change(client, "PUT", items=[STOOL])
    pid = writer().pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    response = client.delete(f"{ITEMS}/i0")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    assert [response.status_code, response.headers["retry-after"]] == [503, "5"]
    assert response.json()["type"] == "/problems/changes-unavailable"
    assert len(found(client)) == 37
    assert client.delete(f"{ITEMS}/i0").json()["sequence"] == 2
    assert len(found(client)) == 36


def test_a_killed_writer_is_told_as_what_it_is(changing: Changing):
    client = changing()
    change(client, "DELETE", item_ids=["i0"])
    process = writer()
    process.suspend()
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(client.delete, f"{ITEMS}/i1")
        time.sleep(0.2)
        assert len(found(client)) == 35
        process.kill()
        response = asked.result(60)
    assert [response.status_code, "retry-after" in response.headers] == [503, True]
    assert response.json()["type"] == "/problems/changes-unavailable"
    assert "not known" in response.json()["detail"]
    wait_until(lambda: client.delete(f"{ITEMS}/i1").status_code in (200, 404))
    assert len(found(client)) == 34


def test_what_changed_is_in_metrics_and_readiness(changing: Changing):
    client = changing()
    change(client, "PUT", items=[STOOL, {"item_id": "bad"}])
    client.delete(f"{ITEMS}/i0")
    client.delete(f"{ITEMS}/none")
    found(client, filters={"color": ["red"]})
    found(client, filters={"color": ["red"]})
    facts = client.get("/readyz").json()["catalogue"]
    assert [facts["sequence"], facts["added"], facts["deleted"]] == [2, 1, 1]
    assert facts["log_bytes"] == metric(client, "onesearch_catalogue_log_bytes") > 0
    for name, value in (
        *(("sequence", 2), ("items", 36), ("added_rows", 1), ("deleted_rows", 1)),
        *(("waiting_changes", 0), ("merging", 0), ("merge_failed", 0), ("merges_total", 0)),
        *(("changes_applied_total", 2), ("changes_rejected_total", 1)),
    ):
        assert metric(client, f"onesearch_catalogue_{name}") == value
    text = client.get("/metrics").text
    assert 'onesearch_catalogue_filters_total{result="hit"}' in text
    [build] = [line for line in text.splitlines() if line.startswith("onesearch_build_info{")]
    assert "+" not in build.split('index_version="')[1]
