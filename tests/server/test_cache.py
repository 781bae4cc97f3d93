from server.cache import LruCache


def test_the_least_recently_used_value_leaves():
    cache: LruCache[str, int] = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert [cache.get("a"), cache.get("b"), cache.get("c")] == [1, None, 3]
    assert len(cache) == 2
