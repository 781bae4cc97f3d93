"""What clicks teach about words."""

from __future__ import annotations

from index.attribute_types import AttributeType
from index.snapshot import Snapshot
from server.keywords.associations import Associations, Click, units_of
from server.keywords.vocabulary import Vocabulary


def log(shop: Snapshot) -> list[Click]:
    """People who write "weary" click massagers; "blue" things are clicked by everybody."""
    rows = {name: shop.items.rows_with("category", name).tolist() for name in ("massagers", "mugs")}
    return [Click("so weary today", row) for row in rows["massagers"]] + [
        Click("cup blue", row) for row in rows["mugs"]
    ]


def test_a_word_brings_what_was_clicked_for_it(shop: Snapshot, vocabulary: Vocabulary) -> None:
    found = Associations.build(log(shop), vocabulary, version="log").expand("weary", vocabulary)
    best = max(found, key=lambda number: found[number])
    values = {vocabulary.concepts[number].value for number in found}
    assert vocabulary.concepts[best].type is not AttributeType.COLOR
    assert "massagers" in values
    assert "coffee mug" not in values
    assert all(score > 0 for score in found.values())


def test_unheard_words_bring_nothing(shop: Snapshot, vocabulary: Vocabulary) -> None:
    associations = Associations.build(log(shop), vocabulary, version="log")
    assert associations.expand("unheard of", vocabulary) == {}
    assert Associations.build([], vocabulary, version="").expand("weary", vocabulary) == {}


def test_a_seen_query_is_taken_as_a_whole(shop: Snapshot, vocabulary: Vocabulary) -> None:
    associations = Associations.build(log(shop), vocabulary, version="log")
    assert associations.expand("blue cup", vocabulary) != {}
    assert units_of("cup blue")[0] == "=cup blue"
