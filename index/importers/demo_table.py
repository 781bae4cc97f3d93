"""What the simulated demo shop sells: `demo_shop.toml` as typed, read-only data."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

TABLE_FILE = "demo_shop.toml"


@dataclass(frozen=True, slots=True)
class Brand:
    """`level` is where its prices lie: 0 cheap … 1 expensive."""

    name: str
    department: str
    level: float


@dataclass(frozen=True, slots=True)
class Category:
    """One leaf of the category tree and the values its items draw from."""

    path: tuple[str, str, str]
    nouns: tuple[str, ...]
    materials: tuple[str, ...]
    functions: tuple[str, ...]
    audiences: tuple[str, ...]
    colors: tuple[str, ...]
    price: tuple[float, float]
    uses: tuple[str, ...]
    features: tuple[str, ...]
    spec: tuple[str, tuple[str, ...]] | None
    attributes: dict[str, tuple[str, ...]]
    made: str

    @property
    def department(self) -> str:
        return self.path[0]


@dataclass(frozen=True, slots=True)
class ShopTable:
    """`clashes`: unordered pairs of values that no item has together."""

    categories: tuple[Category, ...]
    brands: tuple[Brand, ...]
    series: tuple[str, ...]
    details: tuple[str, ...]
    paraphrases: dict[str, tuple[str, ...]]
    clashes: frozenset[tuple[str, str]]


def read_table() -> ShopTable:
    """The table that ships with the package."""
    text = resources.files("index.importers").joinpath(TABLE_FILE).read_text(encoding="utf-8")
    raw: dict[str, Any] = tomllib.loads(text)
    pairs = [(left, right) for left, rights in raw["clashes"].items() for right in rights]
    return ShopTable(
        categories=tuple(_category(entry, raw["palettes"]) for entry in raw["categories"]),
        brands=tuple(
            Brand(name, group["department"], level)
            for group in raw["brands"]
            for name, level in group["names"].items()
        ),
        series=tuple(raw["series"]),
        details=tuple(raw["details"]),
        paraphrases={name: tuple(texts) for name, texts in raw["paraphrases"].items()},
        clashes=frozenset(pairs) | {(right, left) for left, right in pairs},
    )


def _category(entry: dict[str, Any], palettes: dict[str, list[str]]) -> Category:
    department, middle, leaf = entry["path"]
    low, high = entry["price"]
    spec = [(name, tuple(values)) for name, values in entry.get("spec", {}).items()]
    return Category(
        path=(department, middle, leaf),
        nouns=tuple(entry["nouns"]),
        materials=tuple(entry["materials"]),
        functions=tuple(entry["functions"]),
        audiences=tuple(entry["audiences"]),
        colors=tuple(palettes[entry["palette"]]),
        price=(float(low), float(high)),
        uses=tuple(entry["uses"]),
        features=tuple(entry["features"]),
        spec=spec[0] if spec else None,
        attributes={name: tuple(values) for name, values in entry["attributes"].items()},
        made=entry.get("made", "made of"),
    )
