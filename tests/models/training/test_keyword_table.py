from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.errors import DataError
from models.training.keyword_table import read_keywords

ROWS = [
    {"query": "red desk", "user_id": None, "terms": ["desk", "old"], "item_id": None},
    {"query": "red desk", "user_id": "u1", "terms": ["standing desk"], "item_id": None},
    {"query": "red desk", "user_id": None, "terms": ["desk", "red"], "item_id": None},
    {"query": "oak lamp", "user_id": None, "terms": ["lamp"], "item_id": "i7"},
]


def test_parquet_and_json_lines_say_the_same(tmp_path: Path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "keywords.parquet")
    lines = '{"query": "red desk", "terms": ["desk", "red"]}\n'
    (tmp_path / "keywords.jsonl").write_text(lines)
    table = read_keywords(tmp_path / "keywords.parquet")
    assert table.of("red desk") == ("desk", "red")
    assert table.of("  RED  Desk", "somebody") == ("desk", "red")
    assert table.of("red desk", "u1") == ("standing desk",)
    assert table.of("unknown") == ()
    assert table.derived == (("oak lamp", "i7"),)
    short = read_keywords(tmp_path / "keywords.jsonl")
    assert short.generic == {"red desk": ("desk", "red")}
    assert short.version != table.version


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("[1]", "row 2"),
        ("{", "JSON"),
        ('{"query": 3, "terms": []}', "query"),
        ('{"query": "a", "terms": "b"}', "terms"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, line: str, word: str):
    path = tmp_path / "keywords.jsonl"
    path.write_text('{"query": "a", "terms": ["b"]}\n' + line + "\n")
    with pytest.raises(DataError, match=word):
        read_keywords(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="nothing"):
        read_keywords(tmp_path / "nothing.parquet")
