"""Attribute dictionary: what it learns. Matcher: equal to a brute-force longest-match oracle."""

from itertools import pairwise
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.attribute_types import AttributeType
from index.attributes import MAX_KEYWORDS, AttributeDictionary, AttributeMatcher, Entry
from index.dataset import ITEMS
from index.errors import ArtifactError, DataError
from index.text import normalise

T = AttributeType


def item(title: str, **columns: object) -> dict[str, object]:
    return {"item_id": title, "title": title, **columns}


@pytest.fixture(scope="module")
def dictionary() -> AttributeDictionary:
    rows = [
        item("Norvell Oak Writing Desk, Natural", brand="Norvell", material=["Oak"]),
        item("Tavira Writing Desk with Drawers", brand="Tavira", color=["Moss Green / Sage"]),
        item("Small Writing Desk in Black", brand="Home", color=["Black"]),
        item("Compact Home Desk", brand="Norvell", attributes=[("room", ["Study"])]),
        item("Home Running Shoes", category=["Sports", "Shoes", "Running Shoes & Spikes"]),
        item("Home Kettle", attributes=[("series", ["Aurora 500"]), ("voltage", ["230V"])]),
        item("Home Rug Black", material=["Medium Density Fiberboard (MDF)"]),
        item("Home Chair", brand="Unknown", color=["Other"], function=["back support"]),
        *(item(f"{maker} Steel Tool Kit") for maker in ("Tavira", "Norvell", "Quern")),
        item("Block of Knives", category=["Kitchen", "Chef Knives"]),
        item("Home Lamp", audience=["Crafters"], brand="Moss Green"),
    ]
    return AttributeDictionary.build(pa.Table.from_pylist(rows, schema=ITEMS))


def test_learns_types_from_columns_attributes_and_titles(dictionary: AttributeDictionary) -> None:
    expected = {
        "norvell": Entry(T.BRAND, "norvell"),
        "sage": Entry(T.COLOR, "sage"),
        "mdf": Entry(T.MATERIAL, "medium density fiberboard"),
        "study": Entry(T.SCENE, "study"),
        "aurora 500": Entry(T.SERIES, "aurora 500"),
        "230v": Entry(T.SPECIFICATIONS, "230v"),
        "back support": Entry(T.FUNCTION, "back support"),
        "crafters": Entry(T.AUDIENCE, "crafters"),
        "running shoe": Entry(T.ENTITY, "running shoes"),
        "tool kits": Entry(T.ENTITY, "tool kit"),
        "chef knife": Entry(T.ENTITY, "chef knives"),
        "spikes": Entry(T.ENTITY, "spikes"),
        "writing desk": Entry(T.ENTITY, "writing desk"),
        "writing desks": Entry(T.ENTITY, "writing desk"),
    }
    assert {surface: dictionary.entries[surface] for surface in expected} == expected


def test_placeholders_generic_brands_and_rare_head_nouns_are_left_out(
    dictionary: AttributeDictionary,
) -> None:
    assert not {"unknown", "other", "home", "kettle", "kit"} & dictionary.entries.keys()


def test_conflicts_go_by_priority(dictionary: AttributeDictionary) -> None:
    assert dictionary.entries["moss green"].type is T.COLOR  # also a brand
    assert dictionary.entries["oak"].type is T.MATERIAL


def test_every_type_is_reachable() -> None:
    text = {kind: {f"word{kind.lower()}": []} for kind in T}
    matcher = AttributeMatcher(AttributeDictionary.of(text))
    assert [m.type for m in matcher.match(" ".join(f"Word{kind}" for kind in T))] == list(T)


def test_extension_wins_and_survives_saving(
    dictionary: AttributeDictionary, tmp_path: Path
) -> None:
    words = tmp_path / "words.json"
    words.write_bytes(orjson.dumps({"Anchor": {"Norvell Live": ["norvell", "ＮＬ show"]}}))
    extended = dictionary.extend(words)
    assert extended.entries["norvell"] == Entry(T.ANCHOR, "norvell live")
    assert extended.entries["nl show"] == Entry(T.ANCHOR, "norvell live")
    assert dictionary.entries["norvell"].type is T.BRAND
    extended.save(tmp_path / "a")
    AttributeDictionary.open(tmp_path / "a").save(tmp_path / "b")
    assert AttributeDictionary.open(tmp_path / "b") == extended
    files = [tmp_path / name / "attributes.json" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "expected JSON"),
        (b"[]", "expected JSON"),
        (b'{"Color": {"red": "crimson"}}', "not for 'red'"),
        (b'{"Colour": {"red": []}}', "'Colour' is not an attribute type"),
    ],
)
def test_bad_extension_is_one_clear_error(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "words.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint) as error:
        AttributeDictionary({}).extend(path)
    assert str(path) in str(error.value)


def test_missing_or_damaged_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"attributes\.json"):
        AttributeDictionary.open(tmp_path)
    (tmp_path / "attributes.json").write_text("{]")
    with pytest.raises(ArtifactError, match=r"attributes\.json"):
        AttributeDictionary.open(tmp_path)


def found(text: str, words: dict[str, dict[str, list[str]]] | None = None) -> list[tuple[str, str]]:
    matcher = AttributeMatcher(AttributeDictionary.of(words or {}))
    return [(match.type, match.value) for match in matcher.match(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24 in. vanity", [("Specifications", "24 in")]),
        ('1-1/2" x 3 ft board', [("Specifications", "1-1/2 in x 3 ft")]),
        ("2x4", [("Specifications", "2 x 4")]),
        ("set of 3-piece pans, 2.5L", [("Specifications", "3 piece"), ("Specifications", "2.5 l")]),
        ("枕套45*70cm白", [("Specifications", "45 x 70 cm")]),
        ("headphones under $50", [("Price", "under $50")]),
        ("under 24 in", [("Specifications", "24 in")]),
        ("below 30 dollars", [("Price", "below 30 dollars")]),
        ("dcd771c2 drill", [("Model", "dcd771c2")]),
        ("xr-500b", [("Model", "xr-500b")]),
        ("1st 50s 2nd 3 4", []),
        ("no digits at all", []),
    ],
)
def test_patterns(text: str, expected: list[tuple[str, str]]) -> None:
    assert found(text) == expected


def test_whole_words_except_in_scripts_without_spaces() -> None:
    words = {"Color": {"red": ["红"]}, "Entity": {"裙子": [], "हर": [], "เสื้อ": []}}
    assert found("hundred predator redo", words) == []
    assert found("red, (RED) red-ish", words) == [("Color", "red")] * 3
    assert found("夏季红裙子女", words) == [("Color", "red"), ("Entity", "裙子")]
    assert found("ขายเสื้อผ้า", words) == [("Entity", "เสื้อ")]
    assert found("हरि", words) == []  # a vowel sign continues the word


def test_keywords_are_distinct_capped_and_without_marketing(
    dictionary: AttributeDictionary,
) -> None:
    matcher = AttributeMatcher(dictionary)
    assert matcher.keywords("Best BLACK writing desks, blacks, on sale") == [
        "black",
        "writing desk",
    ]
    many = matcher.keywords(
        "small soft slim large portable electric foldable mini norvell black oak writing desk"
    )
    assert len(many) == MAX_KEYWORDS
    assert many[-4:] == ["norvell", "black", "oak", "writing desk"]
    assert matcher.keywords("") == []


def oracle(text: str, surfaces: set[str]) -> list[tuple[int, int]]:
    """Longest, then leftmost whole-word substrings that are surfaces, greedily."""
    text = normalise(text)

    def edge(position: int) -> bool:
        pair = text[max(position - 1, 0) : position + 1]
        return position in (0, len(text)) or not all(c in "ab1é" for c in pair)

    spans = [
        (start, end)
        for start in range(len(text))
        for end in range(start + 1, len(text) + 1)
        if text[start:end] in surfaces and edge(start) and edge(end)
    ]
    taken: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0] - span[1], span[0])):
        if all(end <= s or start >= e for s, e in taken):
            taken.append((start, end))
    return sorted(taken)


@given(
    surfaces=st.sets(st.text("ab é红-", min_size=1, max_size=5), max_size=12),
    text=st.text("abé 红-", max_size=24),
)
def test_matches_equal_the_brute_force_oracle(surfaces: set[str], text: str) -> None:
    dictionary = AttributeDictionary.of({"Entity": {surface: [] for surface in surfaces}})
    matches = AttributeMatcher(dictionary).match(text)
    assert [(m.start, m.end) for m in matches] == oracle(text, set(dictionary.entries))
    assert all(m.surface == normalise(text)[m.start : m.end] for m in matches)


@given(st.text())
def test_any_text_gives_ordered_disjoint_matches(text: str) -> None:
    matches = AttributeMatcher(AttributeDictionary.build(ITEMS.empty_table())).match(text)
    assert all(a.end <= b.start for a, b in pairwise(matches))
