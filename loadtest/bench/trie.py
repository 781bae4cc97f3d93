"""`bench trie`: building, size, opening and filters of the trie, 10⁴ to 10⁷ SIDs.

Peers: the padded dense + CSR scheme (loadtest/bench/padded.py), built from the same sorted SIDs,
and at the smaller sizes the dict of dicts that most repositories use. Neither has a filter: theirs
is a build from the SIDs that are kept.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from index.sid import SidLayout
from index.trie import Trie
from loadtest.bench import padded
from loadtest.bench.catalogues import PUBLISHED_LAYOUT, random_keys
from loadtest.bench.padded import PaddedScheme
from loadtest.bench.report import OURS, Row, race, row

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
QUICK_SIZES = (10_000, 1_000_000)
DICT_NAME = "dict of dicts (Python)"
MOST_DICT_SIDS = 100_000
KEPT_SHARES = (0.5, 0.05, 0.0001)
_TOO_LARGE = f"only measured up to {MOST_DICT_SIDS:,} SIDs"


def rows(quick: bool) -> list[Row]:
    """All tables, each at every size."""
    return [one for part in TABLES.values() for one in part(quick)]


def build_rows(quick: bool, sizes: tuple[int, ...] = ()) -> list[Row]:
    """Seconds from sorted SIDs to a trie."""
    found: list[Row] = []
    for size in sizes or _sizes(quick):
        keys = random_keys(PUBLISHED_LAYOUT, size)
        codes = PUBLISHED_LAYOUT.unpack(keys)
        contenders: dict[str, Callable[[], Any]] = {
            OURS: lambda keys=keys: Trie.build(PUBLISHED_LAYOUT, keys, assume_sorted=True),
            padded.NAME: lambda codes=codes: PaddedScheme.build(PUBLISHED_LAYOUT, codes),
        }
        if size <= MOST_DICT_SIDS:
            contenders[DICT_NAME] = lambda codes=codes: dict_trie(codes)
        times = race(contenders, rounds=5, budget_s=15.0, warm_up=int(size <= MOST_DICT_SIDS))
        right = bool(np.array_equal(times.answers[OURS].keys, keys))
        peers: dict[str, Any] = times.peers(1.0)
        if size > MOST_DICT_SIDS:
            peers[DICT_NAME] = _TOO_LARGE
        setting = {"sids": size}
        found.append(
            row("trie, build", setting, times.seconds[OURS], peers, "s", keys_restored=right)
        )
    return found


def memory_rows(quick: bool, sizes: tuple[int, ...] = ()) -> list[Row]:
    """Bytes per SID of the result, and of the build's peak above its input, each measured in a
    process of its own."""
    size_rows: list[Row] = []
    peak_rows: list[Row] = []
    for size in sizes or _sizes(quick):
        own, scheme = _built_alone(_build_ours, size), _built_alone(_build_padded, size)
        setting = {"sids": size}
        for found, what, at in ((size_rows, "trie, size", 0), (peak_rows, "trie, peak", 1)):
            peers: dict[str, float | str] = {padded.NAME: scheme[at] / size}
            peers[DICT_NAME] = _TOO_LARGE
            if size <= MOST_DICT_SIDS:
                peers[DICT_NAME] = _built_alone(_build_dict, size)[at] / size
            found.append(row(what, setting, own[at] / size, peers, "bytes per SID"))
        peak_rows[-1]["peak_over_result"] = round(own[1] / own[0], 2)
    return size_rows + peak_rows


def open_rows(quick: bool, sizes: tuple[int, ...] = ()) -> list[Row]:
    """Milliseconds to open a saved trie by memory map and look up one SID."""
    found: list[Row] = []
    for size in sizes or _sizes(quick):
        keys = random_keys(PUBLISHED_LAYOUT, size)
        with tempfile.TemporaryDirectory() as folder:
            Trie.build(PUBLISHED_LAYOUT, keys, assume_sorted=True).save(Path(folder))
            wanted = keys[size // 2 : size // 2 + 1]
            times = race({OURS: lambda wanted=wanted: Trie.open(Path(folder)).find(wanted)})
        right = times.answers[OURS].tolist() == [size // 2]
        setting = {"sids": size}
        found.append(
            row("trie, open", setting, times.scaled(OURS, 1e3), {}, "ms", found_the_sid=right)
        )
    return found


def filter_rows(quick: bool, sizes: tuple[int, ...] = ()) -> list[Row]:
    """Milliseconds from a mask of leaves to a usable filter; for peers, a build of what is kept."""
    found: list[Row] = []
    for size in sizes or _sizes(quick):
        keys = random_keys(PUBLISHED_LAYOUT, size)
        codes = PUBLISHED_LAYOUT.unpack(keys)
        trie = Trie.build(PUBLISHED_LAYOUT, keys, assume_sorted=True)
        for share in KEPT_SHARES:
            mask = np.random.default_rng(size).random(size) < share
            if not mask.any():
                continue
            contenders: dict[str, Callable[[], Any]] = {
                OURS: lambda trie=trie, mask=mask: trie.filter(mask),
                padded.NAME: lambda codes=codes, mask=mask: PaddedScheme.build(
                    PUBLISHED_LAYOUT, codes[mask]
                ),
            }
            times = race(contenders, rounds=5, budget_s=3.0)
            setting = {"sids": size, "kept": f"{share:.2%}"}
            peers = times.peers(1e3)
            found.append(row("trie, filter", setting, times.scaled(OURS, 1e3), peers, "ms"))
    return found


TABLES: dict[str, Callable[[bool], list[Row]]] = {
    "build": build_rows,
    "memory": memory_rows,
    "open": open_rows,
    "filter": filter_rows,
}


def dict_trie(codes: NDArray[np.int32]) -> dict[int, Any]:
    """The trie as nested dicts, one per prefix."""
    root: dict[int, Any] = {}
    for sid in codes.tolist():
        node = root
        for code in sid:
            node = node.setdefault(code, {})
    return root


def _sizes(quick: bool) -> tuple[int, ...]:
    return QUICK_SIZES if quick else SIZES


def _build_ours(keys: NDArray[np.uint64], layout: SidLayout) -> tuple[Any, int]:
    trie = Trie.build(layout, keys, assume_sorted=True)
    return trie, trie.n_bytes


def _build_padded(codes: NDArray[np.int32], layout: SidLayout) -> tuple[Any, int]:
    scheme = PaddedScheme.build(layout, codes)
    return scheme, scheme.n_bytes


def _build_dict(codes: NDArray[np.int32], layout: SidLayout) -> tuple[Any, int]:
    before = _resident_bytes()
    root = dict_trie(codes)
    return root, _resident_bytes() - before


def _built_alone(build: Callable[..., tuple[Any, int]], size: int) -> tuple[int, int]:
    """(bytes of the result, peak bytes above the input) of a build in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "input.npy"
        keys = random_keys(PUBLISHED_LAYOUT, size)
        np.save(file, keys if build is _build_ours else PUBLISHED_LAYOUT.unpack(keys))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_measure_build, build, file).result()


def _measure_build(build: Callable[..., tuple[Any, int]], file: Path) -> tuple[int, int]:
    sids = np.load(file)
    build(sids[:2], PUBLISHED_LAYOUT)  # Whatever is loaded on first use is not the build's.
    _forget_peak()
    before = _resident_bytes()
    kept, n_bytes = build(sids, PUBLISHED_LAYOUT)
    peak = _peak_bytes() - before
    del kept
    return n_bytes, max(peak, n_bytes)


def _resident_bytes() -> int:
    return psutil.Process().memory_info().rss


def _forget_peak() -> None:
    """Start `_peak_bytes` anew, so that what imports and loading took for a while is not in it."""
    with suppress(OSError):
        # 5: Linux resets the peak resident size. Elsewhere it stays; the input is most of it.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_bytes() -> int:
    """Largest resident size since `_forget_peak`."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        # Elsewhere than on Linux; there this figure may be a parent's.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
