"""Queries of the simulated demo shop: what is typed, and what is meant by it.

Every query carries its meaning (categories, wanted and excluded values, price limit), so relevance
is computed, not guessed: `grades` is the ground truth of the simulation.

Grades. Excluded values, or none of the query's categories and not their neighbours: 0. All wanted
values: 3. One of three or more missing: 2. One of one or two missing, or of a neighbouring category
(same second level) with all wanted values: 1. Otherwise 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from index.importers.demo_items import Bools, DemoItems
from index.importers.demo_spelling import misspell
from index.importers.demo_table import Category, ShopTable

Value = tuple[str, str]  # facet, value

MIN_PERFECT = 2  # a query that fewer items answer is not asked
ZIPF_EXPONENT = 0.45

# How often each intent is drawn for the pool, and how much more its queries are asked.
SHARES = {"attribute": 0.34, "tail": 0.36, "price": 0.06, "negation": 0.1, "misspelt": 0.14}
DEMAND = {
    "head": 18.0,
    "attribute": 2.5,
    "tail": 1.4,
    "price": 2.0,
    "negation": 1.6,
    "question": 3.0,
    "misspelt": 1.6,
}
_FORMS = {
    "women": ("womens {}", "women's {}", "{} for women", "ladies {}"),
    "men": ("mens {}", "men's {}", "{} for men"),
    "kids": ("kids {}", "{} for kids", "childrens {}"),
    "girls": ("girls {}", "{} for girls"),
    "boys": ("boys {}", "{} for boys"),
    "toddlers": ("toddler {}", "{} for toddlers"),
    "babies": ("baby {}", "{} for babies"),
}
_USE_FORMS = (
    "what do i need for {}",
    "what to buy for {}",
    "essentials for {}",
    "things i need for {}",
    "{} essentials",
)
_UNCOUNTED = ("food", "litter", "swimwear", "wash", "jigsaw", "oil", "bedding", "furniture")


@dataclass(frozen=True, slots=True)
class DemoQuery:
    """A query and its meaning. `categories` empty: any. `right`: the correct spelling's number."""

    text: str
    intent: str
    categories: tuple[int, ...]
    wanted: tuple[Value, ...] = ()
    excluded: tuple[Value, ...] = ()
    excluded_categories: tuple[int, ...] = ()
    price_max: float | None = None
    right: int | None = None


def grades(query: DemoQuery, items: DemoItems, table: ShopTable) -> NDArray[np.int8]:
    """(n_items,) relevance 0 … 3 by the rule above."""
    here, near = _places(query, items, table)
    satisfied = np.zeros(len(items), dtype=np.int64)
    for facet, value in query.wanted:
        satisfied += items.facets[facet].of(value)
    asked = len(query.wanted)
    if query.price_max is not None:
        asked += 1
        satisfied += items.price <= query.price_max
    missing = asked - satisfied
    grade = np.zeros(len(items), dtype=np.int8)
    grade[near & (missing == 0)] = 1
    grade[here & (missing == 1)] = 2 if asked >= 3 else 1
    grade[here & (missing == 0)] = 3
    grade[_excluded(query, items)] = 0
    return grade


def _places(query: DemoQuery, items: DemoItems, table: ShopTable) -> tuple[Bools, Bools]:
    if not query.categories:
        everywhere = np.ones(len(items), dtype=np.bool_)
        # Without a category nothing but the wanted values makes an item fit.
        for facet, value in query.wanted:
            everywhere &= items.facets[facet].of(value)
        return everywhere, everywhere
    parents = {table.categories[c].path[:2] for c in query.categories}
    near = [c for c, category in enumerate(table.categories) if category.path[:2] in parents]
    if len(query.categories) > 1:  # an occasion: its categories only
        near = []
    return np.isin(items.category, query.categories), np.isin(items.category, near)


def _excluded(query: DemoQuery, items: DemoItems) -> Bools:
    out = np.isin(items.category, query.excluded_categories)
    for facet, value in query.excluded:
        out |= items.facets[facet].of(value)
    return out


def plural(noun: str) -> str:
    """The plural of a noun of the table; plurals and uncounted nouns stay as they are."""
    if noun.endswith(_UNCOUNTED) or (noun.endswith("s") and not noun.endswith("ss")):
        return noun
    if noun.endswith(("ss", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("arf"):
        return noun[:-1] + "ves"
    if noun.endswith("ife"):
        return noun[:-2] + "ves"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


class QueryWriter:
    """Writes queries about items of one shop, each answered by MIN_PERFECT items or more."""

    def __init__(self, table: ShopTable, items: DemoItems, rng: np.random.Generator) -> None:
        self.table = table
        self.items = items
        self.rng = rng

    def write(self, n_queries: int) -> list[DemoQuery]:
        """About `n_queries` distinct queries: heads and occasions, then the other intents."""
        found: dict[str, DemoQuery] = {}
        plain = [*self._heads(), *self._occasions()]
        if len(plain) > n_queries // 2:
            kept = self.rng.choice(len(plain), n_queries // 2, replace=False)
            plain = [plain[i] for i in sorted(kept)]
        for query in plain:
            self._keep(query, found)
        missing = n_queries - len(found)
        makers = {
            "attribute": self._attribute,
            "tail": self._tail,
            "price": self._price,
            "negation": self._negation,
        }
        for intent, make in makers.items():
            self._fill(make, round(missing * SHARES[intent]), found)
        queries = list(found.values())
        for _ in range(round(missing * SHARES["misspelt"])):
            number = int(self.rng.integers(len(queries)))
            text = misspell(queries[number].text, self.rng)
            if text not in found:
                found[text] = replace(queries[number], text=text, intent="misspelt", right=number)
        return list(found.values())

    def _fill(
        self, make: Callable[[int], DemoQuery | None], count: int, found: dict[str, DemoQuery]
    ) -> None:
        target = len(found) + count
        for _ in range(count * 8):  # most drafts are kept; tiny shops run out of new ones
            if len(found) >= target:
                break
            query = make(int(self.rng.integers(len(self.items))))
            if query is not None:
                self._keep(query, found)

    def _keep(self, query: DemoQuery, found: dict[str, DemoQuery]) -> None:
        if query.text in found:
            return
        if int((grades(query, self.items, self.table) == 3).sum()) >= MIN_PERFECT:
            found[query.text] = query

    def _one(self, options: tuple[str, ...] | list[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def _noun(self, category: Category) -> str:
        common = self.rng.random() < 0.6
        noun = category.nouns[0] if common else self._one(category.nouns)
        return plural(noun) if self.rng.random() < 0.4 else noun

    def _heads(self) -> Iterator[DemoQuery]:
        for number, category in enumerate(self.table.categories):
            for noun in category.nouns:
                yield DemoQuery(noun, "head", (number,))
                yield DemoQuery(plural(noun), "head", (number,))

    def _occasions(self) -> Iterator[DemoQuery]:
        """Questions whose answer lies in several categories."""
        uses = sorted({use for category in self.table.categories for use in category.uses})
        for use in uses:
            where = tuple(i for i, c in enumerate(self.table.categories) if use in c.uses)
            for form in _USE_FORMS:
                bare = use.removeprefix("a ").removeprefix("the ")
                text = form.format(bare if form.startswith("{}") else use)
                yield DemoQuery(text, "question", where)
        for function, texts in self.table.paraphrases.items():
            wanted = (("function", function),)
            if function not in self.items.facets["function"].values:
                continue
            for text in (*texts, function, f"what helps with {function}"):
                yield DemoQuery(text, "question", (), wanted)
            where = [i for i, c in enumerate(self.table.categories) if function in c.functions]
            for without in where:
                left_out = self.table.categories[without]
                for text in (texts[0], function):
                    yield DemoQuery(
                        f"{text}, no {plural(left_out.nouns[0])}",
                        "negation",
                        (),
                        wanted,
                        excluded_categories=(without,),
                    )

    def _values(self, row: int, facets: tuple[str, ...]) -> list[Value]:
        held: list[Value] = []
        for name in facets:
            facet = self.items.facets[name]
            held.extend((name, facet.values[i]) for i in np.flatnonzero(facet.has[row]))
        return [value for value in held if value[1] not in ("plain", "dogs", "cats")]

    def _attribute(self, row: int) -> DemoQuery | None:
        """One wanted value."""
        values = self._values(
            row, ("brand", "color", "material", "function", "audience", "feature", "other")
        )
        if not values:
            return None
        value = values[int(self.rng.integers(len(values)))]
        return self._about(row, (value,), "attribute")

    def _tail(self, row: int) -> DemoQuery | None:
        """Two to four wanted values of one item."""
        values = self._values(
            row, ("brand", "color", "material", "function", "audience", "feature", "spec", "other")
        )
        if len(values) < 2:
            return None
        count = 2 + int(self.rng.random() < 0.45) + int(self.rng.random() < 0.15)
        chosen: dict[str, Value] = {}  # one value of a facet: nobody asks for two functions
        for number in self.rng.permutation(len(values)):
            if len(chosen) < count:
                chosen.setdefault(values[number][0], values[number])
        return self._about(row, tuple(chosen.values()), "tail")

    def _about(self, row: int, wanted: tuple[Value, ...], intent: str) -> DemoQuery:
        index = int(self.items.category[row])
        noun = self._noun(self.table.categories[index])
        return DemoQuery(self._phrase(noun, wanted), intent, (index,), wanted)

    def _phrase(self, noun: str, wanted: tuple[Value, ...]) -> str:
        """Words in the orders people use: mostly adjectives first, sometimes at the end."""
        before: list[str] = []
        after: list[str] = []
        text = noun
        for facet, value in wanted:
            value = value.lower()
            if set(value.split()) & set(noun.split()):
                continue
            if facet == "function":
                after.append(self._one([f"for {value}", f"for {value}", value]))
            elif facet == "audience":
                text = self._one(_FORMS.get(value, ("{} for " + value,))).format(text)
            elif facet == "spec":
                (after if self.rng.random() < 0.7 else before).append(value)
            elif value.startswith(("with ", "in ")):
                after.append(value)
            elif facet == "brand":
                (before if self.rng.random() < 0.8 else after).insert(0, value)
            else:
                (before if self.rng.random() < 0.85 else after).append(value)
        return " ".join([*before, text, *after])

    def _price(self, row: int) -> DemoQuery | None:
        index = int(self.items.category[row])
        category = self.table.categories[index]
        level = float(
            np.quantile(self.items.price[self.items.category == index], self.rng.uniform(0.2, 0.7))
        )
        step = 5 if level < 50 else 10 if level < 200 else 50
        limit = float(max(step, round(level / step) * step))
        values = self._values(row, ("color", "material", "audience"))
        wanted = (values[int(self.rng.integers(len(values)))],) if values else ()
        wanted = wanted if self.rng.random() < 0.4 else ()
        form = self._one(["{} under ${}", "{} under {} dollars", "{} below ${}", "{} up to ${}"])
        text = form.format(self._phrase(self._noun(category), wanted), int(limit))
        return DemoQuery(text, "price", (index,), wanted, price_max=limit)

    def _negation(self, row: int) -> DemoQuery | None:
        """A noun, perhaps a wanted value, and one that is not."""
        index = int(self.items.category[row])
        unwanted = self._values(row, ("material", "color", "brand", "feature"))
        if not unwanted:
            return None
        facet, value = unwanted[int(self.rng.integers(len(unwanted)))]
        wanted: tuple[Value, ...] = ()
        others = self._values(row, ("audience", "function"))
        if others and self.rng.random() < 0.4:
            wanted = (others[int(self.rng.integers(len(others)))],)
        noun = self._noun(self.table.categories[index])
        if set(value.lower().split()) & set(noun.split()):
            return None
        forms = ["{} not {}", "{}, not {}"]
        if facet == "material":
            forms = ["{} not {}", "{} without {}", "{} no {}", "{}, anything but {}"]
        elif facet == "color":
            forms = ["{} not {}", "{}, not {}", "{} in any color but {}"]
        elif facet == "brand":
            forms = ["{} not {}", "{} not from {}", "{}, not {}"]
        phrase = self._phrase(noun, wanted)
        text = self._one(forms).format(phrase, value.removeprefix("with ").lower())
        return DemoQuery(text, "negation", (index,), wanted, excluded=((facet, value),))


def demand(queries: list[DemoQuery], rng: np.random.Generator) -> NDArray[np.float64]:
    """(n_queries,) how often each is asked, summing to 1: intent, then Zipf within the pool."""
    base = np.array([DEMAND[query.intent] for query in queries])
    rank = 1 + rng.permutation(len(queries))
    weight = base * (rank / len(queries)) ** -ZIPF_EXPONENT
    return weight / weight.sum()
