"""What is kept of filters has an end."""

import pytest

from index.items import ItemFilter
from index.live import filters as module
from index.live.changes import Update
from index.live.filters import FilterCache
from index.live.view import CatalogueView
from index.snapshot import Snapshot
from tests.index.live.conftest import changed


def kept(cache: FilterCache, view: CatalogueView, filters: ItemFilter) -> bool:
    """Whether asking for a filter again finds it as it was made."""
    misses = cache.misses
    cache.allowed(filters, view)
    return cache.misses == misses


def test_the_filters_used_last_are_kept(base: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILTERS", 3)
    view, cache = CatalogueView.of(base), FilterCache()
    asked = [ItemFilter(price_max=float(price)) for price in range(4)]
    for one in asked:
        cache.allowed(one, view)
    assert all(kept(cache, view, one) for one in asked[1:])
    assert not kept(cache, view, asked[0])


def test_memory_is_counted_as_filters_grow(base: Snapshot) -> None:
    """A mended filter has a second sheet, which counts as the first does."""
    view, one, other = CatalogueView.of(base), ItemFilter(price_max=1.0), ItemFilter(in_stock=True)
    alone = FilterCache()
    alone.allowed(one, view)
    room = 2 * alone.n_bytes
    cache = FilterCache(room)
    cache.allowed(one, view)
    cache.allowed(other, view)
    assert kept(cache, view, one)
    for price in (1.5, 2.5):
        view = changed(view, [Update("i1", {"price": price})])
        cache.allowed(other, view)
    assert cache.n_bytes <= room
    assert not kept(cache, view, one)
