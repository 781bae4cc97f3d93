"""Mapping files: read from TOML and JSON, mistakes named."""

import json
from pathlib import Path

import pytest

from index.errors import ConfigError
from index.importers.mapping import load_mapping

TOML = """
delimiter = ";"
categories = ["Office"]
[items]
item_id = "sku"
[items.separators]
category = ">"
[items.attributes]
size = "size_label"
"""


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(TOML)
    data = {
        "delimiter": ";",
        "categories": ["Office"],
        "items": {
            "item_id": "sku",
            "separators": {"category": ">"},
            "attributes": {"size": "size_label"},
        },
    }
    (tmp_path / "m.json").write_text(json.dumps(data))
    mapping = load_mapping(tmp_path / "m.toml")
    assert mapping == load_mapping(tmp_path / "m.json")
    items = mapping.table("items")
    assert (items.column("item_id"), items.column("title")) == ("sku", "title")
    assert (items.separator("category"), items.separator("color")) == (">", "|")
    assert items.attributes == {"size": "size_label"}
    assert mapping.delimiter == ";"
    assert mapping.table("events").column("time") == "time"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[item]\n", "unknown entry 'item'; known are items"),
        ("[items]\nprise = 'p'\n", "unknown field 'prise'; fields are item_id"),
        ("[items]\nprice = 3\n", "price must be text"),
        ("[items.separators]\nx = ','\n", "unknown field 'x'"),
        ("[items.extra]\nx = 'y'\n", "unknown table 'extra'"),
        ("[judgments.attributes]\nx = 'y'\n", "have no attributes"),
        ("delimiter = '||'\n", "one character"),
        ("categories = 'a'\n", "list of names"),
        ("items = 3\n", "must be a table"),
        ("[items\n", "is not valid"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_mapping(tmp_path / "m.toml")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_mapping(tmp_path / "none.toml")
    (tmp_path / "m.json").write_text("[1]")
    with pytest.raises(ConfigError, match="must hold tables"):
        load_mapping(tmp_path / "m.json")
