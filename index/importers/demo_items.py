"""Items of the simulated demo shop: product lines of invented brands, in variants.

A line fixes brand, series, noun, material, function, audience and feature; its variants differ in
colour and measure, as in real catalogues. Values that do not go together (`clashes`) never meet.
Titles show most, not all, of what an item is; the columns hold all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.importers.demo_table import Brand, Category, ShopTable

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_VARIANTS = 6
OUT_OF_STOCK_SHARE = 0.06
TWO_COLORS_SHARE = 0.1
TWO_FUNCTIONS_SHARE = 0.4
NOT_FOR_ONE_SHARE = 0.5  # of the lines drawn for beginners, adults and the like: for everybody
FACETS = ("brand", "color", "material", "function", "audience", "feature", "spec", "other")

_POSSESSIVE = {
    "women": "Women's",
    "men": "Men's",
    "kids": "Kids'",
    "girls": "Girls'",
    "boys": "Boys'",
    "babies": "Baby",
    "toddlers": "Toddler",
    "adults": "Adult",
}
_BENEFICIARIES = ("seniors", "beginners", "professionals", "athletes")
_KEPT_CASE = {"usb", "gps", "tsa", "uv", "mdf", "pvc", "tpe", "abs", "eva", "amoled", "spf", "led"}
_SMALL_WORDS = {"in", "with", "for", "and", "the", "of", "to"}
_IN_TITLE = ("pattern", "style", "theme", "length", "scent", "protection", "layout")


@dataclass(frozen=True, slots=True)
class Facet:
    """Values of one kind and which items have them: `has` is bool (n_items, n_values)."""

    values: tuple[str, ...]
    has: Bools

    def of(self, value: str) -> Bools:
        return self.has[:, self.values.index(value)]


@dataclass(frozen=True, slots=True)
class DemoItems:
    """`rows` are the lines of items.jsonl; the arrays are (n_items,) and aligned with them.

    `price_level` is the item's price quantile within its category, `facets` are keyed by FACETS.
    """

    rows: list[dict[str, Any]]
    category: Ints
    brand: Ints
    price: Floats
    price_level: Floats
    stock: Ints
    popularity: Floats
    facets: dict[str, Facet]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class _Line:
    brand: Brand
    series: str
    noun: str
    material: str
    functions: tuple[str, ...]
    audience: str
    feature: str
    attributes: dict[str, str]
    price: float
    appeal: float


def make_items(table: ShopTable, n_items: int, rng: np.random.Generator) -> DemoItems:
    """At least one item in each category, `n_items` in all (n_items ≥ number of categories)."""
    rows: list[dict[str, Any]] = []
    values: list[dict[str, list[str]]] = []
    category_of: list[int] = []
    seen: set[str] = set()
    for index, count in enumerate(_quotas(len(table.categories), n_items, rng)):
        category = table.categories[index]
        made = 0
        while made < count:
            line = _draw_line(table, category, rng)
            for color, spec in _variants(table, category, line, count - made, rng):
                row, facets = _item(table, category, line, color, spec, rng)
                if row["title"] in seen:
                    continue
                seen.add(row["title"])
                rows.append(row)
                values.append(facets)
                category_of.append(index)
                made += 1
    order = rng.permutation(len(rows))
    rows = [rows[i] for i in order]
    for number, row in enumerate(rows):
        row["item_id"] = f"i{number + 1:05d}"
    return _columns(
        table,
        [{"item_id": row.pop("item_id"), **row} for row in rows],
        [values[i] for i in order],
        np.array(category_of, dtype=np.int64)[order],
    )


def _quotas(n_categories: int, n_items: int, rng: np.random.Generator) -> list[int]:
    weights = rng.dirichlet(np.full(n_categories, 6.0))
    bounds = np.rint(np.cumsum(weights) * (n_items - n_categories)).astype(int)
    return (1 + np.diff(bounds, prepend=0)).tolist()


def _fits(table: ShopTable, value: str, chosen: Iterable[str]) -> bool:
    words = set(value.split())
    return all(
        (value, other) not in table.clashes and not words & set(other.split()) for other in chosen
    )


def _pick(
    table: ShopTable,
    values: Sequence[str],
    chosen: Iterable[str],
    rng: np.random.Generator,
    first_weight: float = 1.0,
) -> str:
    """A value that goes with those chosen, or "" if none does."""
    fitting = [value for value in values if _fits(table, value, chosen)]
    if not fitting:
        return ""
    weights = np.ones(len(fitting))
    if fitting[0] == values[0]:
        weights[0] = first_weight
    return fitting[int(rng.choice(len(fitting), p=weights / weights.sum()))]


def _draw_line(table: ShopTable, category: Category, rng: np.random.Generator) -> _Line:
    brands = [brand for brand in table.brands if brand.department == category.department]
    brand = brands[int(rng.integers(len(brands)))]
    series = table.series[int(rng.integers(len(table.series)))]
    noun = _pick(table, category.nouns, (), rng, first_weight=3.0)
    chosen = [noun]
    audience = _pick(table, category.audiences, chosen, rng) if category.audiences else ""
    if audience in (*_BENEFICIARIES, "kids", "adults") and rng.random() < NOT_FOR_ONE_SHARE:
        audience = ""
    chosen.append(audience)
    material = _pick(table, category.materials, chosen, rng)
    chosen.append(material)
    feature = _pick(table, category.features, chosen, rng)
    chosen.append(feature)
    functions = [_pick(table, category.functions, chosen, rng)]
    if rng.random() < TWO_FUNCTIONS_SHARE:
        functions.append(_pick(table, category.functions, [*chosen, *functions], rng))
    functions = [function for function in functions if function]
    chosen.extend(functions)
    attributes: dict[str, str] = {}
    for name, options in category.attributes.items():
        if name != "size" and (value := _pick(table, options, chosen, rng)):
            attributes[name] = value
            chosen.append(value)
    low, high = category.price
    position = np.clip(0.65 * brand.level + 0.35 * rng.random() + rng.normal(0, 0.06), 0, 1)
    return _Line(
        brand=brand,
        series=series,
        noun=noun,
        material=material,
        functions=tuple(functions),
        audience=audience,
        feature=feature,
        attributes=attributes,
        price=float(low * (high / low) ** position),
        appeal=float(rng.normal(0, 1) + 0.5 * (category.nouns[0] == noun)),
    )


def _variants(
    table: ShopTable, category: Category, line: _Line, most: int, rng: np.random.Generator
) -> list[tuple[tuple[str, ...], str]]:
    chosen = [line.noun, line.audience, line.material, line.feature, *line.functions]
    chosen.extend(line.attributes.values())
    specs = [s for s in category.spec[1] if _fits(table, s, chosen)] if category.spec else []
    options = [
        ((color,) if color else (), spec) for color in category.colors or ("",) for spec in specs
    ] or [((color,) if color else (), "") for color in category.colors or ("",)]
    count = min(int(rng.integers(1, MAX_VARIANTS + 1)), most, len(options))
    picked = [options[i] for i in sorted(rng.choice(len(options), count, replace=False))]
    return [
        (_second_color(colors, category.colors, rng) if colors else colors, spec)
        for colors, spec in picked
    ]


def _second_color(
    colors: tuple[str, ...], palette: tuple[str, ...], rng: np.random.Generator
) -> tuple[str, ...]:
    others = [color for color in palette if color not in (*colors, "multicolor")]
    if colors[0] == "multicolor" or rng.random() >= TWO_COLORS_SHARE:
        return colors
    return (colors[0], others[int(rng.integers(len(others)))])


def _item(
    table: ShopTable,
    category: Category,
    line: _Line,
    colors: tuple[str, ...],
    spec: str,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    attributes = {name: [value] for name, value in line.attributes.items()}
    attributes["series"] = [line.series]
    if line.feature:
        attributes["feature"] = [line.feature]
    if spec and category.spec:
        attributes[category.spec[0]] = [spec]
    if "size" in category.attributes:
        sizes = category.attributes["size"]
        held = rng.random(len(sizes)) < 0.75
        held[int(rng.integers(len(sizes)))] = True
        attributes["size"] = [size for size, kept in zip(sizes, held, strict=True) if kept]
    price = line.price * float(rng.normal(1.0, 0.03))
    if spec and category.spec and len(category.spec[1]) > 1:
        price *= 0.85 + 0.35 * category.spec[1].index(spec) / (len(category.spec[1]) - 1)
    in_stock = rng.random() >= OUT_OF_STOCK_SHARE
    row: dict[str, Any] = {
        "title": _title(line, colors, spec, rng),
        "description": _description(table, category, line, colors, rng),
        "brand": line.brand.name,
        "category": list(category.path),
        "color": list(colors),
        "material": [line.material] if line.material else [],
        "audience": [line.audience] if line.audience else [],
        "function": list(line.functions),
        "attributes": attributes,
        "price": _shelf_price(price),
        "stock": 1 + int(rng.lognormal(3.0, 1.0)) if in_stock else 0,
        "popularity": float(int(np.exp(2.2 + 1.0 * line.appeal + rng.normal(0, 0.6)))),
    }
    shown = {name: held for name, held in line.attributes.items() if name in _IN_TITLE}
    facets = {
        "brand": [line.brand.name],
        "color": list(colors),
        "material": row["material"],
        "function": row["function"],
        "audience": row["audience"],
        "feature": [line.feature] if line.feature else [],
        "spec": [spec] if spec else [],
        "other": list(shown.values()),
    }
    return row, facets


def _shelf_price(price: float) -> float:
    """14.37 → 14.49, 212.4 → 212.99: what price tags look like."""
    whole = int(price)
    return whole + (0.49 if price - whole < 0.5 and whole < 100 else 0.99)


def _title(line: _Line, colors: tuple[str, ...], spec: str, rng: np.random.Generator) -> str:
    feature_last = line.feature.startswith(("with ", "in "))
    before: list[str] = [line.brand.name]
    if rng.random() < 0.6:
        before.append(line.series)
    adjectives = [
        value
        for name, value in line.attributes.items()
        if name in _IN_TITLE and value not in ("plain", "neutral") and rng.random() < 0.5
    ]
    if line.feature and not feature_last and rng.random() < 0.75:
        adjectives.append(line.feature)
    before.extend(adjectives[:2])
    if line.audience in _POSSESSIVE and _POSSESSIVE[line.audience].lower() not in line.noun:
        before.append(_POSSESSIVE[line.audience])
    color = " and ".join(colors)
    color_place = rng.choice(
        ["front", "in", "comma", "dash", "none"], p=[0.2, 0.35, 0.2, 0.1, 0.15]
    )
    if color and color_place == "front":
        before.append("/".join(colors))
    if line.material and rng.random() < 0.8:
        before.append(line.material)
    title = _capitals(" ".join([*before, line.noun]))
    if line.feature and feature_last:
        title += " " + _capitals(line.feature)
    if line.audience in _BENEFICIARIES:
        title += f" for {_capitals(line.audience)}"
    elif line.functions and rng.random() < 0.45:
        title += f" for {_capitals(line.functions[0])}"
    if spec and rng.random() < 0.92:
        title += f", {spec}"
    if color and color_place == "in":
        title += f" in {_capitals(color)}"
    elif color and color_place in ("comma", "dash"):
        title += (", " if color_place == "comma" else " - ") + _capitals(color)
    return title


def _capitals(text: str) -> str:
    return " ".join(
        word.upper()
        if word in _KEPT_CASE
        else word
        if word in _SMALL_WORDS
        else "/".join(part[:1].upper() + part[1:] for part in word.split("/"))
        for word in text.split()
    )


def _description(
    table: ShopTable,
    category: Category,
    line: _Line,
    colors: tuple[str, ...],
    rng: np.random.Generator,
) -> str:
    feature_last = line.feature.startswith(("with ", "in "))
    lead = line.noun if feature_last or not line.feature else f"{line.feature} {line.noun}"
    if feature_last:
        lead += f" {line.feature}"
    if line.material:
        material = line.material.upper() if line.material in _KEPT_CASE else line.material
        lead += f" {category.made} {material}"
    if line.functions:
        lead += f", {('ideal', 'great', 'made')[int(rng.integers(3))]} for "
        lead += " and ".join(line.functions)
    sentences = [lead[:1].upper() + lead[1:] + "."]
    if colors:
        sentences.append(f"Color: {' and '.join(colors)}.")
    sentences.append(table.details[int(rng.integers(len(table.details)))])
    return " ".join(sentences)


def _columns(
    table: ShopTable, rows: list[dict[str, Any]], values: list[dict[str, list[str]]], category: Ints
) -> DemoItems:
    facets: dict[str, Facet] = {}
    for name in FACETS:
        vocabulary = tuple(sorted({value for held in values for value in held[name]}))
        column = {value: number for number, value in enumerate(vocabulary)}
        has = np.zeros((len(rows), len(vocabulary)), dtype=np.bool_)
        for number, held in enumerate(values):
            has[number, [column[value] for value in held[name]]] = True
        facets[name] = Facet(vocabulary, has)
    names = {brand.name: number for number, brand in enumerate(table.brands)}
    price = np.array([row["price"] for row in rows])
    level = np.zeros(len(rows))
    for index in range(len(table.categories)):
        members = np.flatnonzero(category == index)
        ranks = np.argsort(np.argsort(price[members], kind="stable"), kind="stable")
        level[members] = (ranks + 0.5) / len(members)
    return DemoItems(
        rows=rows,
        category=category,
        brand=np.array([names[row["brand"]] for row in rows], dtype=np.int64),
        price=price,
        price_level=level,
        stock=np.array([row["stock"] for row in rows], dtype=np.int64),
        popularity=np.array([row["popularity"] for row in rows]),
        facets=facets,
    )
