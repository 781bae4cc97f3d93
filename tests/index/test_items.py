from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.dataset import ITEMS
from index.errors import ArtifactError, ConfigError, DataError
from index.items import MAX_CACHED_MASKS, ItemFilter, ItemTable

ROWS: list[dict[str, Any]] = [
    {
        "item_id": "a",
        "title": "Oak desk",
        "brand": "Nørd",
        "category": ["Home", "Office", "Desks"],
        "color": ["Brown", "BLACK"],
        "material": ["oak"],
        "attributes": {"legs": ["4"]},
        "price": 100.0,
        "stock": 3,
        "popularity": 10.0,
    },
    {"item_id": "b", "title": "Lamp", "brand": "nørd ", "category": ["Home"], "stock": 0},
    {"item_id": "c", "title": "Pen", "price": 2.5, "color": ["black", None], "popularity": 1.0},
    {"item_id": "d", "title": "Ink", "category": [], "price": 4.0, "stock": -2},
]


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> ItemTable:
    directory = tmp_path_factory.mktemp("items")
    return ItemTable.write(directory, pa.Table.from_pylist(ROWS, schema=ITEMS))


def kept(items: ItemTable, **conditions: Any) -> str:
    rows = np.flatnonzero(items.mask(ItemFilter(**conditions)))
    return "".join(items.item_ids(rows))


def test_filters(items: ItemTable) -> None:
    assert kept(items) == "abcd"
    assert kept(items, brand=("NØRD",)) == "ab"
    assert kept(items, category=("home",)) == "ab"
    assert kept(items, category=("desks", "pens")) == "a"
    assert kept(items, color=("black",)) == "ac"
    assert kept(items, color=("black",), brand=("nørd",)) == "a"
    assert kept(items, material=("steel",)) == ""
    assert kept(items, price_max=4) == "cd"
    assert kept(items, price_min=3, price_max=100) == "ad"
    assert kept(items, in_stock=True) == "acd"
    assert ItemFilter().is_empty
    assert not ItemFilter(in_stock=True).is_empty


WORDS = st.lists(st.sampled_from(["Red", "red ", "blue", "Green", ""]), max_size=3)
GENERATED = st.lists(
    st.fixed_dictionaries(
        {
            "brand": st.sampled_from([None, "Red", "RED", "x"]),
            "color": st.none() | WORDS,
            "price": st.none() | st.integers(0, 4).map(float),
            "stock": st.none() | st.integers(0, 2),
        }
    ),
    min_size=1,
    max_size=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    GENERATED,
    st.sampled_from([(), ("red",), ("Blue", "green")]),
    st.sampled_from([(), ("red",), ("none",)]),
    st.none() | st.integers(0, 2).map(float),
    st.none() | st.integers(2, 4).map(float),
    st.booleans(),
)
def test_mask_equals_the_definition_row_by_row(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    color: tuple[str, ...],
    brand: tuple[str, ...],
    low: float | None,
    high: float | None,
    in_stock: bool,
) -> None:
    for number, row in enumerate(rows):
        row |= {"item_id": str(number), "title": "t"}

    def holds(row: dict[str, Any]) -> bool:
        colors = {value.strip().lower() for value in row["color"] or []}
        price = row["price"]
        return (
            (not color or bool(colors & {value.lower() for value in color}))
            and (not brand or (row["brand"] or "").lower() in brand)
            and (low is None or (price is not None and price >= low))
            and (high is None or (price is not None and price <= high))
            and (not in_stock or row["stock"] != 0)
        )

    table = pa.Table.from_pylist(rows, schema=ITEMS)
    items = ItemTable.write(tmp_path_factory.mktemp("generated"), table)
    filters = ItemFilter(color=color, brand=brand, price_min=low, price_max=high, in_stock=in_stock)
    assert items.mask(filters).tolist() == [holds(row) for row in rows]


def test_rows_and_columns(items: ItemTable) -> None:
    assert items.rows_of(["c", "nobody", "a", ""]).tolist() == [2, -1, 0, -1]
    assert items.row_of("d") == 3
    assert items.row_of("e") is None
    desk = items.get(0)
    assert (desk["title"], desk["attributes"]) == ("Oak desk", {"legs": ["4"]})
    assert desk["category"] == ["Home", "Office", "Desks"]
    assert [item["item_id"] for item in items.get_many(np.array([3, 1]))] == ["d", "b"]
    assert items.column("title").to_pylist() == ["Oak desk", "Lamp", "Pen", "Ink"]
    assert np.isnan(items.price[1])
    assert items.popularity.tolist() == [10, 0, 1, 0]
    assert abs(float(items.popularity_score.mean())) < 1e-6
    assert items.values("category") == ["desks", "home", "office"]


def test_equal_filters_share_a_mask(items: ItemTable) -> None:
    first = items.mask(ItemFilter(color=("Black", "red")))
    assert items.mask(ItemFilter(color=("RED", "black ", "red"))) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = False


def test_the_cache_is_bounded_and_shared_by_threads(items: ItemTable) -> None:
    def work() -> None:
        for price in range(MAX_CACHED_MASKS * 2):
            assert items.mask(ItemFilter(price_max=price)).shape == (4,)

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(items._cache.masks) == MAX_CACHED_MASKS


def test_only_two_columns_are_needed(tmp_path: Path) -> None:
    items = ItemTable.write(tmp_path, pa.table({"item_id": ["x"], "title": ["t"]}))
    assert kept(items, in_stock=True) == "x"
    assert kept(items, brand=("b",)) == ""
    assert kept(items, price_min=1) == ""
    assert items.get(0) == {"item_id": "x", "title": "t"}


def test_a_table_in_chunks(tmp_path: Path) -> None:
    halves = [pa.Table.from_pylist(ROWS[i : i + 2], schema=ITEMS) for i in (0, 2)]
    items = ItemTable.write(tmp_path, pa.concat_tables(halves))
    assert kept(items, color=("black",)) == "ac"
    assert kept(items, price_max=4) == "cd"


def test_an_empty_table(tmp_path: Path) -> None:
    items = ItemTable.write(tmp_path, ITEMS.empty_table())
    assert items.rows_of(["a"]).tolist() == [-1]
    assert items.mask(ItemFilter(brand=("x",))).shape == (0,)


@pytest.mark.parametrize("ids", [["a", "b", "a"], ["a", ""]])
def test_bad_ids_are_refused(tmp_path: Path, ids: list[str]) -> None:
    with pytest.raises(DataError, match="item_id"):
        ItemTable.write(tmp_path, pa.table({"item_id": ids, "title": ids}))


def test_bad_filters_are_refused() -> None:
    with pytest.raises(ConfigError, match="price_min"):
        ItemFilter(price_min=3, price_max=2)
    with pytest.raises(ConfigError, match="tuple"):
        ItemFilter(brand="x")  # type: ignore[arg-type]


def test_damage_is_named(tmp_path: Path) -> None:
    ItemTable.write(tmp_path, pa.table({"item_id": ["x"], "title": ["t"]}))
    (tmp_path / "price.npy").unlink()
    with pytest.raises(ArtifactError, match="price"):
        ItemTable.open(tmp_path)
    with pytest.raises(ArtifactError, match="no item table"):
        ItemTable.open(tmp_path / "elsewhere")
