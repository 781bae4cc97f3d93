"""What a request tells the logits processor: the `extra_args` of its sampling parameters, which are
`vllm_xargs` in an HTTP request.

    sid_constrained  true or false. Without it a request is constrained if it has any other key of
                     these, or if the processor was set up to constrain all ("constrain": "always").
    sid_prefix       codes before the first generated token, one integer per level; none if missing.
    sid_allowed      codes allowed at the first generated level, as integers, or as bytes with one
                     bit per code of the level, the lowest first; they take the place of the trie
                     at that level.
    sid_filter       SIDs or beginnings of SIDs as text, such as "<a_3><b_1>": only SIDs that begin
                     with one of them are generated.
    sid_prior        numbers added to the logits of SID tokens, integers or floats, or little-endian
                     float32 bytes: of the first generated level alone, or of all levels from it on.

The processor normalises over the level's whole codebook, prior included, whatever is allowed.
Everything wrong is a ValueError that says what, which vLLM answers with HTTP 400.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from index.sid import MAX_LEVEL_SIZE, SidLayout
from index.trie import Trie

CONSTRAINED = "sid_constrained"
PREFIX = "sid_prefix"
ALLOWED = "sid_allowed"
FILTER = "sid_filter"
PRIOR = "sid_prior"
KEYS = (CONSTRAINED, PREFIX, ALLOWED, FILTER, PRIOR)
OWN = "sid_"
MAX_FILTER_ENTRIES = 4096
_CODE_TEXT = re.compile(r"<([a-z])_(\d{1,5})>")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, eq=False)
class SidArguments:
    """A constrained request. `prefix`: codes; `allowed`: uint8, a bit per code, or None for the
    trie; `filter`: beginnings of SIDs or None; `prior`: float32, from the level of `prefix` on."""

    prefix: tuple[int, ...] = ()
    allowed: NDArray[np.uint8] | None = None
    filter: tuple[tuple[int, ...], ...] | None = None
    prior: NDArray[np.float32] | None = None


def parse(
    extra_args: Mapping[str, Any] | None, layout: SidLayout | None, *, always: bool = False
) -> SidArguments | None:
    """The request's arguments, None where it is not constrained.

    `layout` None: sizes are not known here and not checked. Raises ValueError.
    """
    arguments = extra_args or {}
    own = [key for key in arguments if key.startswith(OWN)]
    if not own and not always:
        return None
    unknown = [key for key in own if key not in KEYS]
    if unknown:
        raise ValueError(f"unknown argument {unknown[0]!r}; there are {', '.join(KEYS)}")
    if not _truth(arguments.get(CONSTRAINED, True)):
        if len(own) > 1:
            raise ValueError(f"{CONSTRAINED} is false, but the request has {', '.join(own)}")
        return None
    prefix = _prefix(arguments.get(PREFIX), layout)
    allowed = _allowed(arguments.get(ALLOWED), len(prefix), layout)
    chosen = _filter(arguments.get(FILTER), layout)
    if allowed is not None and chosen is not None:
        raise ValueError(f"{ALLOWED} and {FILTER} exclude each other; give one")
    return SidArguments(prefix, allowed, chosen, _prior(arguments.get(PRIOR), len(prefix), layout))


def allowed_bits(
    rows: NDArray[np.integer[Any]], codes: NDArray[np.integer[Any]], count: int, size: int
) -> NDArray[np.uint8]:
    """Codes of rows as `sid_allowed` has them in bytes: uint8 (count, ⌈size / 8⌉)."""
    table = np.zeros((count, size), dtype=np.bool_)
    table[rows, codes] = True
    return np.packbits(table, axis=1, bitorder="little")


def check_legal(arguments: SidArguments, trie: Trie) -> None:
    """Raises ValueError for a prefix that no SID has, or a filter that leaves nothing after it."""
    if arguments.prefix and not _exists(trie, arguments.prefix):
        raise ValueError(f"{PREFIX} {list(arguments.prefix)}: no SID begins with these codes")
    if arguments.filter is None:
        return
    depth = len(arguments.prefix)
    for entry in arguments.filter:
        shared = min(depth, len(entry))
        if entry[:shared] == arguments.prefix[:shared] and _exists(trie, entry):
            return
    raise ValueError(
        f"{FILTER} leaves nothing: no SID begins with one of its entries"
        + (f" and with {PREFIX} {list(arguments.prefix)}" if depth else "")
    )


def _exists(trie: Trie, prefix: tuple[int, ...]) -> bool:
    node = np.zeros(1, dtype=np.int64)
    for level, code in enumerate(prefix):
        node = trie.child_with_code(level, node, np.array([code]))
        if node[0] < 0:
            return False
    return True


def _truth(value: Any) -> bool:
    if value in (True, False, 0, 1):
        return bool(value)
    if value in ("true", "false"):
        return value == "true"
    raise ValueError(f"{CONSTRAINED} is {_shown(value)}, it must be true or false")


def _integers(key: str, value: Any) -> list[int]:
    if not isinstance(value, list | tuple) or not all(
        isinstance(code, int) and not isinstance(code, bool) for code in cast(list[object], value)
    ):
        raise ValueError(f"{key} is {_shown(value)}, it must be a list of integers")
    return list(cast(list[int], value))


def _prefix(value: Any, layout: SidLayout | None) -> tuple[int, ...]:
    if value is None:
        return ()
    codes = tuple(_integers(PREFIX, value))
    _check_prefix(PREFIX, codes, layout)
    return codes


def _check_prefix(key: str, codes: tuple[int, ...], layout: SidLayout | None) -> None:
    if layout is None:
        if any(code < 0 for code in codes):
            raise ValueError(f"{key} has code {min(codes)}; codes are not negative")
        return
    if len(codes) > layout.levels:
        raise ValueError(f"{key} has {len(codes)} codes, a SID has {layout.levels}")
    for level, (code, size) in enumerate(zip(codes, layout.level_sizes, strict=False)):
        if not 0 <= code < size:
            raise ValueError(
                f"{key} has code {code} at level {level}, which has codes 0 to {size - 1}"
            )


def _allowed(value: Any, level: int, layout: SidLayout | None) -> NDArray[np.uint8] | None:
    if value is None:
        return None
    if layout is not None and level >= layout.levels:
        raise ValueError(f"{ALLOWED} says what follows a whole SID; shorten {PREFIX}")
    size = MAX_LEVEL_SIZE if layout is None else layout.level_sizes[level]
    if isinstance(value, bytes):
        if layout is not None and len(value) != -(-size // 8):
            raise ValueError(
                f"{ALLOWED} has {len(value)} bytes, level {level} with {size} codes needs "
                f"{-(-size // 8)}"
            )
        bits = np.frombuffer(value, dtype=np.uint8)
        if size % 8 and layout is not None and bits[-1] >> size % 8:
            raise ValueError(f"{ALLOWED} has bits beyond the {size} codes of level {level}")
    else:
        codes = _integers(ALLOWED, value)
        if codes and not 0 <= min(codes) <= max(codes) < size:
            wrong = max(codes) if min(codes) >= 0 else min(codes)
            raise ValueError(
                f"{ALLOWED} has code {wrong} at level {level}, which has codes 0 to {size - 1}"
            )
        bits = allowed_bits(
            np.zeros(len(codes), dtype=np.int64), np.array(codes, dtype=np.int64), 1, size
        )[0]
    if not bits.any():
        raise ValueError(f"{ALLOWED} is empty: nothing would be left to generate")
    return bits


def _filter(value: Any, layout: SidLayout | None) -> tuple[tuple[int, ...], ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(
        isinstance(entry, str) for entry in cast(list[object], value)
    ):
        raise ValueError(
            f"{FILTER} is {_shown(value)}, it must be a list of SIDs or beginnings of SIDs as text"
        )
    entries = cast(list[str], value)
    if not entries:
        raise ValueError(f"{FILTER} is empty and leaves nothing; leave it out for no filter")
    if len(entries) > MAX_FILTER_ENTRIES:
        raise ValueError(f"{FILTER} has {len(entries)} entries, {MAX_FILTER_ENTRIES} at most")
    return tuple(_parsed(entry, layout) for entry in entries)


def _parsed(text: str, layout: SidLayout | None) -> tuple[int, ...]:
    found = _CODE_TEXT.findall(text)
    codes = tuple(int(code) for _, code in found)
    letters = "".join(letter for letter, _ in found)
    whole = "".join(f"<{letter}_{code}>" for letter, code in found)
    if not codes or whole != text or not _LETTERS.startswith(letters):
        raise ValueError(
            f"{FILTER} has {_shown(text)}, which is no SID or beginning of one such as <a_3><b_1>"
        )
    _check_prefix(FILTER, codes, layout)
    return codes


def _prior(value: Any, level: int, layout: SidLayout | None) -> NDArray[np.float32] | None:
    if value is None:
        return None
    if isinstance(value, bytes):
        if len(value) % 4:
            raise ValueError(f"{PRIOR} has {len(value)} bytes, it must be float32 numbers")
        prior = np.frombuffer(value, dtype="<f4")
    elif isinstance(value, list | tuple) and all(
        isinstance(number, int | float) and not isinstance(number, bool)
        for number in cast(list[object], value)
    ):
        with np.errstate(over="ignore"):
            prior = np.array(value, dtype=np.float64).astype(np.float32)
    else:
        raise ValueError(f"{PRIOR} is {_shown(value)}, it must be a list of numbers")
    if not np.isfinite(prior).all():
        raise ValueError(f"{PRIOR} must be finite; exclude SIDs by {FILTER}")
    if layout is not None:
        sizes = layout.level_sizes[level:]
        if len(prior) not in (sum(sizes), *sizes[:1]) or not sizes:
            expected = f"{sizes[0]} or {sum(sizes)}" if sizes else "no"
            raise ValueError(
                f"{PRIOR} has {len(prior)} numbers, after {level} codes it must have {expected}"
            )
    return prior


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
