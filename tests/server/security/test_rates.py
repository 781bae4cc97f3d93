"""Rates: per key and per address, shared in Redis by several gateways, local when it is away."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from server.limits_rate import LocalBuckets, SharedBuckets, network_of
from server.logs import make_logger
from server.redis.connection import RedisConnection
from server.redis.keys import Keys
from server.security_metrics import SecurityMetrics

SEARCH = {"query": "desk"}


def statuses(client: Any, n: int, **options: Any) -> list[int]:
    return [client.post("/v1/search", json=SEARCH, **options).status_code for _ in range(n)]


def test_an_address_has_a_rate(stub_client: Any, logged: Any):
    client = stub_client(rate_limit=0.02, rate_burst_s=150)
    assert statuses(client, 5) == [200, 200, 200, 429, 429]
    refused = client.get("/v1/models")
    assert refused.json()["type"] == "/problems/too-many-requests"
    assert 1 <= int(refused.headers["retry-after"]) <= 50
    logged("request", status=429, problem="too-many-requests")
    # Who looks after the server is not limited.
    for path in ("/livez", "/readyz", "/metrics", "/", "/docs"):
        assert client.get(path).status_code == 200
    told = client.get("/metrics").text
    assert 'onesearch_rate_limited_total{client="address"} 3.0' in told
    assert "127.0.0.1" not in told


def test_nobody_chooses_the_address_that_counts(stub_client: Any):
    """No proxy is believed unless a setting names it, not even on this machine."""
    client = stub_client(rate_limit=0.01, rate_burst_s=1)
    assert statuses(client, 1) == [200]
    for name in ("x-forwarded-for", "forwarded", "x-real-ip"):
        assert statuses(client, 1, headers={name: "192.0.2.1"}) == [429]


def test_addresses_behind_a_proxy_are_their_own(stub_client: Any):
    """What the client itself claims before the proxy's word is not believed."""
    client = stub_client(rate_limit=0.01, rate_burst_s=1, trusted_proxies=("127.0.0.1",))
    first, second = {"x-forwarded-for": "192.0.2.1"}, {"x-forwarded-for": "192.0.2.2"}
    assert statuses(client, 2, headers=first) == [200, 429]
    assert statuses(client, 1, headers=second) == [200]
    assert statuses(client, 1, headers={"x-forwarded-for": "192.0.2.9, 192.0.2.1"}) == [429]


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "address:192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "address:2001:db8:1:2::"),
        ("2001:db8:1:2::1", "address:2001:db8:1:2::"),
        ("::ffff:192.0.2.1", "address:192.0.2.1"),
        ("fe80::1%eth0", "address:fe80::"),
        ("a:b", "address:"),
    ],
)
def test_what_an_address_counts_for(address: str, counted: str):
    assert network_of({"client": (address, 1)}) == counted
    assert network_of({}) == "address:"


def test_a_name_has_a_rate_whatever_key_it_sends(
    stub_client: Any, add_key: Any, tmp_path: Path, logged: Any
):
    texts = [add_key("shop", "search", rate=0.03)[0] for _ in range(2)]
    other, _ = add_key("other", "search")
    client = stub_client(keys_file=tmp_path / "keys.json", rate_burst_s=100)
    old, new = ({"authorization": f"Bearer {text}"} for text in texts)
    assert statuses(client, 2, headers=old) == [200, 200]
    assert statuses(client, 2, headers=new) == [200, 429]
    logged("request", status=429, client="shop")
    assert statuses(client, 9, headers={"authorization": f"Bearer {other}"}) == [200] * 9


def test_a_wrong_key_takes_nothing_from_the_right_one(
    stub_client: Any, add_key: Any, tmp_path: Path
):
    text, _ = add_key("shop", "search", rate=0.01)
    client = stub_client(keys_file=tmp_path / "keys.json", rate_burst_s=1)
    wrong = {"authorization": f"Bearer {text[:-4]}AAAA"}
    assert statuses(client, 20, headers=wrong) == [401] * 20
    assert statuses(client, 1, headers={"authorization": f"Bearer {text}"}) == [200]


def test_a_local_bucket_by_hand():
    now = [100.0]
    buckets = LocalBuckets(2.0, lambda: now[0])
    assert [buckets.take("a", 2.0) for _ in range(4)] == [0.0] * 4
    assert buckets.take("a", 2.0) == 0.5
    assert buckets.take("b", 2.0) == 0.0
    now[0] += 0.5
    assert [buckets.take("a", 2.0), buckets.take("a", 2.0)] == [0.0, 0.5]
    now[0] += 1000
    assert [buckets.take("a", 2.0) for _ in range(5)] == [0.0] * 4 + [0.5]


def shared(url: str, burst_s: float) -> SharedBuckets:
    return SharedBuckets(
        RedisConnection(url, 1.0),
        Keys("rates-test"),
        burst_s,
        SecurityMetrics(CollectorRegistry()),
        make_logger("debug", io.StringIO()),
    )


async def count(buckets: SharedBuckets, client: str, rate: float, n: int) -> int:
    waits = await asyncio.gather(*(buckets.take(client, rate) for _ in range(n)))
    return sum(wait == 0 for wait in waits)


@pytest.fixture
def empty_url(redis_server: Any, with_redis: Callable[..., Any]) -> str:
    async def nothing(_: Any) -> None: ...

    with_redis(nothing)
    return redis_server.url


def test_gateways_share_one_bucket(empty_url: str, monkeypatch: pytest.MonkeyPatch):
    """Whatever they ask for at once, together they let in no more than the bucket gives."""
    monkeypatch.setattr("server.limits_rate.ASK_S", 30.0)

    async def go() -> None:
        gateways = [shared(empty_url, 0.5) for _ in range(3)]
        started = time.monotonic()
        let_in = sum(await asyncio.gather(*(count(one, "a", 100.0, 200) for one in gateways)))
        elapsed = time.monotonic() - started
        # Fifty were saved up; what was fetched and not handed out is lost.
        assert 20 <= let_in <= 50 + 100 * elapsed + 1
        assert sum([await count(one, "b", 100.0, 10) for one in gateways]) == 30
        for one in gateways:
            await one.close()

    asyncio.run(go())


def test_a_bucket_in_redis_ends_by_itself(empty_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("server.limits_rate.ASK_S", 30.0)

    async def go() -> int:
        buckets, redis = shared(empty_url, 2.0), RedisConnection(empty_url, 1.0)
        assert await count(buckets, "a", 1.0, 2) == 2
        wait_s = await buckets.take("a", 1.0)
        assert 0 < wait_s <= 1
        lasts_ms = await redis.command("PTTL", Keys("rates-test").tokens("a"))
        await buckets.close()
        await redis.close()
        return lasts_ms

    assert 0 < asyncio.run(go()) <= 3000


def test_without_redis_each_gateway_counts_by_itself(
    stub_client: Any, logged: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("server.limits_rate.AWAY_S", 0.01)
    client = stub_client(redis_url="unix:///nowhere/redis.sock", rate_limit=0.01, rate_burst_s=200)
    assert statuses(client, 3) == [200, 200, 429]
    logged("rates are counted by this process alone", level="warning")
    assert "onesearch_rates_local 1.0" in client.get("/metrics").text


def test_redis_comes_back(
    empty_url: str, stub_client: Any, logged: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("server.limits_rate.AWAY_S", 0.01)
    monkeypatch.setattr("server.limits_rate.ASK_S", 30.0)
    away = [True]
    asked = RedisConnection.script

    async def script(self: Any, *arguments: Any) -> Any:
        if away[0]:
            raise TimeoutError
        return await asked(self, *arguments)

    monkeypatch.setattr(RedisConnection, "script", script)
    client = stub_client(redis_url=empty_url, rate_limit=1000)
    assert statuses(client, 2) == [200, 200]
    logged("rates are counted by this process alone")
    away[0] = False
    until = time.monotonic() + 30
    while "onesearch_rates_local 0.0" not in client.get("/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.02)
        assert statuses(client, 1) == [200]
    logged("rates are shared again")
