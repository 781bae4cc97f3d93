"""Words of a query that name single items: model numbers, article numbers, item ids.

Who types "MX-4410B" wants that item, whatever the learnt parts of the ranking think of it; they
have seldom seen such a word. So items that have it go before all others (`models.ranking`).

A word of a query is such a name when it has a digit and a letter, or five digits, is no size or
measure ("36x80", "120v", "3-phase", "25,000", "25000"), and one to `MOST_ITEMS` items have that
very word in title or brand, punctuation aside. A query of one word may also be an item's id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from index.catalogue import Catalogue
from index.text import item_text, normalise, words

MOST_ITEMS = 10
LEAST_CHARACTERS = 4
LEAST_DIGITS = 5
"""Of a name without letters."""

MOST_READ = 200
"""Items whose text is looked at; a word whose parts more items have is no name."""

_MEASURE = re.compile(
    r"""
      [\d./]+ (x[\d./]+)+       # 36x80
    | \d{1,3} (,\d{3})+         # 25,000
    | [\d./]{1,3} -?[^\W\d_]+   # 120v, 1/2hp, 3-phase
    """,
    re.VERBOSE,
)
_PUNCTUATION = re.compile(r"[\W_]+")


def named_rows(catalogue: Catalogue, query: str) -> NDArray[np.int64]:
    """Rows of the items that the query names, ascending, int64 (n,); deleted ones are not among
    them. Mostly none."""
    found = [np.asarray(rows, dtype=np.int64) for rows in _found(catalogue, query)]
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def possible_names(text: str) -> dict[str, str]:
    """The words of a text that look like a name, without punctuation, and as they were."""
    plain = (word for word in normalise(text).split() if not _MEASURE.fullmatch(word.strip(",.;")))
    bare = {_PUNCTUATION.sub("", word): word for word in plain}
    return {name: word for name, word in bare.items() if _looks_like_a_name(name)}


def _found(catalogue: Catalogue, query: str) -> Iterator[NDArray[np.int64] | list[int]]:
    whole = query.split()
    if len(whole) == 1 and (row := catalogue.items.row_of(whole[0])) is not None:
        yield [row]
    for name, word in possible_names(query).items():
        rows = catalogue.lexical.rows_with_all(words(word))
        if not 0 < len(rows) <= MOST_READ:
            continue
        items = catalogue.items.get_many(rows)
        kept = [name in possible_names(item_text(item)) for item in items]
        if 0 < sum(kept) <= MOST_ITEMS:
            yield rows[kept]


def _looks_like_a_name(word: str) -> bool:
    digits = sum(character.isdigit() for character in word)
    if digits == len(word):
        return digits >= LEAST_DIGITS and not word.endswith("000")
    return digits > 0 and len(word) >= LEAST_CHARACTERS
