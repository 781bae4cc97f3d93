"""A delta: all that a batch of changes does to a view, worked out to the last number.

Whoever has the view that a delta was made for lays it down (`CatalogueView.with_delta`) without
looking anything up: the process that writes, and the one that only follows it and searches. As
bytes it is

    head length u32 | head, JSON, padded to 8 bytes | arrays, each padded to 8 bytes | payloads

little endian. The arrays are those of `Delta`, in its order; one without values has no bytes.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from index.errors import ArtifactError

_LENGTH = struct.Struct("<I")
_ALIGNMENT = 8


class Delta(NamedTuple):
    """See the module's head. `batch` and `sequence` are those of the view that it leads to.

    Rows ascend and are distinct. Of A added items `…_added` are the numbers they come with; then
    `…_values` are written to `…_rows`, which may be added ones too, and rows `dead` go.

    `touched`: rows that went or came. `previous` (A,): see `AddedItems`. The values of filter
    fields lie behind each other: `field_counts` of each field, items `field_rows` (added ones count
    from 0 at the base's end) and their value's number; `values` are the new ones of each field.
    `tokens` … `lengths`: see `AddedTexts`; `words` are the new tokens. `vectors`: (A · d,). `sids`:
    (A,) SID numbers; in their order the added items go before `sid_places` of those so far, and are
    `sid_order`. `keys`, `depths`, `nodes`, `places`: `Additions` to the trie. `filled` places go
    from the SIDs without an item, then `emptied` go before `emptied_places`.
    """

    batch: int
    sequence: int
    item_ids: list[str]
    payloads: list[bytes]
    values: list[list[str]]
    words: list[str]
    price_rows: NDArray[np.int64]
    price_values: NDArray[np.float64]
    price_added: NDArray[np.float64]
    stock_rows: NDArray[np.int64]
    stock_values: NDArray[np.int64]
    stock_added: NDArray[np.int64]
    popularity_rows: NDArray[np.int64]
    popularity_values: NDArray[np.float64]
    popularity_added: NDArray[np.float64]
    score_values: NDArray[np.float32]
    score_added: NDArray[np.float32]
    dead: NDArray[np.int64]
    touched: NDArray[np.int64]
    previous: NDArray[np.int64]
    field_counts: NDArray[np.int64]
    field_rows: NDArray[np.int64]
    field_numbers: NDArray[np.int64]
    tokens: NDArray[np.int64]
    token_items: NDArray[np.int64]
    impacts: NDArray[np.float32]
    frequencies: NDArray[np.int64]
    lengths: NDArray[np.int64]
    vectors: NDArray[np.float32]
    sids: NDArray[np.int64]
    sid_order: NDArray[np.int64]
    sid_places: NDArray[np.int64]
    keys: NDArray[np.uint64]
    depths: NDArray[np.int64]
    nodes: NDArray[np.int64]
    places: NDArray[np.int64]
    emptied: NDArray[np.int64]
    emptied_places: NDArray[np.int64]
    filled: NDArray[np.int64]

    @property
    def n_added(self) -> int:
        return len(self.item_ids)

    def to_bytes(self) -> bytes:
        arrays: list[bytes] = []
        lengths: list[int] = []
        for name, place in zip(_NAMES, _PLACES, strict=True):
            array: NDArray[Any] = getattr(self, name)
            lengths.append(len(array))
            if len(array):
                arrays.append(_padded(array.astype(_TYPES[place], copy=False).tobytes()))
        head = orjson.dumps(
            [
                self.batch,
                self.sequence,
                self.item_ids,
                [len(payload) for payload in self.payloads],
                self.values,
                self.words,
                lengths,
            ]
        )
        start = _padded(_LENGTH.pack(len(head)) + head)
        return b"".join([start, *arrays, *self.payloads])

    @classmethod
    def from_bytes(cls, data: bytearray) -> Delta:
        """The arrays are views of `data`. Raises ArtifactError when the parts do not fit."""
        try:
            (length,) = _LENGTH.unpack_from(data)
            at = _LENGTH.size + length
            head = orjson.loads(memoryview(data)[_LENGTH.size : at])
            batch, sequence, item_ids, sizes, values, words, lengths = head
            at += -at % _ALIGNMENT
            halves = sum([lengths[place] >> 1 for place in _HALVES])
            n_words = sum(lengths) - halves
            as_integers = np.frombuffer(data, _TYPES[0], n_words, at)
            parts = [as_integers.view(kind) for kind in _TYPES]
            arrays: list[NDArray[Any]] = []
            first = 0
            for count, place, empty in zip(lengths, _PLACES, _EMPTY, strict=True):
                if not count:
                    arrays.append(empty)
                elif place == _HALF:
                    arrays.append(parts[_HALF][2 * first : 2 * first + count])
                    first += (count + 1) >> 1
                else:
                    arrays.append(parts[place][first : first + count])
                    first += count
            at += _ALIGNMENT * n_words
            payloads: list[bytes] = []
            for size in sizes:
                payloads.append(bytes(data[at : at + size]))
                at += size
        except (struct.error, ValueError, TypeError, IndexError) as error:
            raise ArtifactError(f"changes that were handed on cannot be read: {error}") from None
        if at != len(data):
            raise ArtifactError("changes that were handed on are of another length than they say")
        return cls(batch, sequence, item_ids, payloads, values, words, *arrays)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)


_TYPES = tuple(map(np.dtype, ("<i8", "<u8", "<f8", "<f4")))
_HALF = 3
"""The place of the type that two of fit into eight bytes."""
_SINGLES = ("score_values", "score_added", "impacts", "vectors")
_DOUBLES = ("price_values", "price_added", "popularity_values", "popularity_added")
_KINDS = {"keys": 1} | dict.fromkeys(_DOUBLES, 2) | dict.fromkeys(_SINGLES, _HALF)
_NAMES = Delta._fields[6:]
_PLACES = tuple(_KINDS.get(name, 0) for name in _NAMES)
"""Of each array, in the order of `Delta`: the place of its type."""
_HALVES = tuple(number for number, place in enumerate(_PLACES) if place == _HALF)
_EMPTY = tuple(np.empty(0, dtype=_TYPES[place]) for place in _PLACES)
