"""Loops that NumPy would need several passes or calls for. They hold no GIL."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def mark_leaves(
    item_mask: NDArray[np.bool_], leaf_of_row: NDArray[Any], leaf_mask: NDArray[np.bool_]
) -> None:
    """Set the leaf of every allowed item; `leaf_mask` bool (N,) is written."""
    for row in range(len(item_mask)):
        if item_mask[row]:
            leaf_mask[leaf_of_row[row]] = True


@njit(cache=True, nogil=True)
def child_with_code(
    base: NDArray[np.uint32],
    delta: NDArray[np.uint16],
    shift: int,
    codes: NDArray[Any],
    parents: NDArray[np.int64],
    wanted: NDArray[np.int32],
) -> NDArray[np.int64]:
    """The child of each parent that has the wanted code, int64; -1 where there is none.

    `base`, `delta`, `shift`: compact starts of the parents' level; `codes` of the children's.
    """
    found = np.full(len(parents), -1, dtype=np.int64)
    for row in range(len(parents)):
        node = parents[row]
        low = np.int64(base[node >> shift]) + delta[node]
        end = np.int64(base[(node + 1) >> shift]) + delta[node + 1]
        high = end
        while low < high:
            middle = (low + high) >> 1
            if codes[middle] < wanted[row]:
                low = middle + 1
            else:
                high = middle
        if low < end and codes[low] == wanted[row]:
            found[row] = low
    return found


# Signatures are given where the writer's thread is the first to call: compiling would stop it, and
# searches with it, for seconds.
@njit(
    [f"{kind}[::1]({kind}[::1], i8[::1], {kind}[::1])" for kind in ("i8", "u8")],
    cache=True,
    nogil=True,
)
def inserted(values: NDArray[Any], places: NDArray[np.int64], new: NDArray[Any]) -> NDArray[Any]:
    """`values` with `new` before the given places, which ascend; `np.insert`, faster."""
    result = np.empty(len(values) + len(new), dtype=values.dtype)
    first = 0
    for number in range(len(new)):
        place = places[number]
        result[first + number : place + number] = values[first:place]
        result[place + number] = new[number]
        first = place
    result[first + len(new) :] = values[first:]
    return result


@njit(
    [
        f"Tuple((i8[::1], {kind}[::1]))(i8[::1], {kind}[::1], i8[::1], {kind}[::1])"
        for kind in ("i8", "f8", "f4", "b1")
    ],
    cache=True,
    nogil=True,
)
def overwritten(
    rows: NDArray[np.int64],
    values: NDArray[Any],
    new: NDArray[np.int64],
    new_values: NDArray[Any],
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Ascending rows and their values with new ones, which win. All rows ascend, distinct."""
    result = np.empty(len(rows) + len(new), dtype=np.int64)
    result_values = np.empty(len(rows) + len(new), dtype=values.dtype)
    old, count = 0, 0
    for number in range(len(new)):
        row = new[number]
        while old < len(rows) and rows[old] < row:
            result[count] = rows[old]
            result_values[count] = values[old]
            old += 1
            count += 1
        if old < len(rows) and rows[old] == row:
            old += 1
        result[count] = row
        result_values[count] = new_values[number]
        count += 1
    rest = len(rows) - old
    result[count : count + rest] = rows[old:]
    result_values[count : count + rest] = values[old:]
    return result[: count + rest], result_values[: count + rest]


@njit(["i8[::1](i8[::1], i8[::1], i8[::1], i8[::1])"], cache=True, nogil=True)
def exchanged(
    values: NDArray[np.int64],
    gone: NDArray[np.int64],
    places: NDArray[np.int64],
    new: NDArray[np.int64],
) -> NDArray[np.int64]:
    """`values` without those at places `gone` and with `new` before `places`, all places those in
    `values`, ascending."""
    result = np.empty(len(values) - len(gone) + len(new), dtype=np.int64)
    count, going, coming = 0, 0, 0
    for place in range(len(values) + 1):
        while coming < len(new) and places[coming] == place:
            result[count] = new[coming]
            coming += 1
            count += 1
        if place == len(values):
            break
        if going < len(gone) and gone[going] == place:
            going += 1
            continue
        result[count] = values[place]
        count += 1
    return result


@njit(nogil=True)
def with_leaves(
    keys: NDArray[np.uint64],
    depth: NDArray[np.int64],
    node: NDArray[np.int64],
    ids: NDArray[np.int64],
    new_keys: NDArray[np.uint64],
    new_depth: NDArray[np.int64],
    new_node: NDArray[np.int64],
    places: NDArray[np.int64],
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The four columns of added leaves with new ones before the given places; new ids go on."""
    n = len(keys) + len(new_keys)
    all_keys, all_depth = np.empty(n, dtype=np.uint64), np.empty(n, dtype=np.int64)
    all_node, all_ids = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    first = 0
    for number in range(len(new_keys) + 1):
        place = places[number] if number < len(new_keys) else len(keys)
        at, end = first + number, place + number
        all_keys[at:end] = keys[first:place]
        all_depth[at:end] = depth[first:place]
        all_node[at:end] = node[first:place]
        all_ids[at:end] = ids[first:place]
        first = place
        if number < len(new_keys):
            all_keys[end] = new_keys[number]
            all_depth[end] = new_depth[number]
            all_node[end] = new_node[number]
            all_ids[end] = len(ids) + number
    return all_keys, all_depth, all_node, all_ids


@njit(nogil=True)
def added_nodes(
    keys: NDArray[np.uint64],
    depth: NDArray[np.int64],
    node: NDArray[np.int64],
    ids: NDArray[np.int64],
    shifts: NDArray[np.int64],
    bits: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> tuple[
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.uint16],
    NDArray[np.int64],
]:
    """The added nodes of all levels below added leaves; see the head of `index.live.trie`.

    `counts`: nodes of the base on each level. Returns where the leaves of depth L - 1, …, 0 begin
    and the last end, int64 (L + 1,); the leaf of each id; parents, starts and codes of all levels
    behind each other; and for each level where its own begin: parents, their number, starts, codes,
    their number, int64 (L, 5).
    """
    n, levels = len(keys), len(shifts)
    begins = np.zeros(levels + 1, dtype=np.int64)
    for leaf in range(n):
        begins[levels - depth[leaf]] += 1
    for group in range(levels):
        begins[group + 1] += begins[group]
    leaf_of_id = np.empty(n, dtype=np.int64)
    for leaf in range(n):
        leaf_of_id[ids[leaf]] = counts[levels - 1] + leaf
    room = 0
    for level in range(levels):
        room += n - begins[levels - 1 - level]
    parents = np.empty(room, dtype=np.int64)
    starts = np.empty(room + levels, dtype=np.int64)
    codes = np.empty(room, dtype=np.uint16)
    table = np.empty((levels, 5), dtype=np.int64)
    above = np.empty(n, dtype=np.int64)
    parents_end, starts_end, codes_end = 0, 0, 0
    for level in range(levels):
        first = begins[levels - 1 - level]
        shift = np.uint64(shifts[level])
        mask = (np.uint64(1) << np.uint64(bits[level])) - np.uint64(1)
        n_parents, n_codes = 0, 0
        before, last_parent = np.uint64(0), np.int64(-1)
        for leaf in range(first, n):
            prefix = keys[leaf] >> shift
            if leaf == first or prefix != before:
                parent = node[leaf]
                if depth[leaf] < level:
                    parent = above[leaf] + counts[level - 1]
                if parent != last_parent:
                    parents[parents_end + n_parents] = parent
                    starts[starts_end + n_parents] = n_codes
                    n_parents += 1
                codes[codes_end + n_codes] = prefix & mask
                n_codes += 1
                last_parent = parent
            before = prefix
            above[leaf] = n_codes - 1
        starts[starts_end + n_parents] = n_codes
        table[level, 0], table[level, 1] = parents_end, n_parents
        table[level, 2] = starts_end
        table[level, 3], table[level, 4] = codes_end, n_codes
        parents_end += n_parents
        starts_end += n_parents + 1
        codes_end += n_codes
    return begins, leaf_of_id, parents, starts, codes, table


@njit(
    [
        "Tuple((u8[::1], i8[::1], i8[::1], i8[::1],"
        " i8[::1], i8[::1], i8[::1], i8[::1], u2[::1], i8[:, ::1]))"
        "(u8[::1], i8[::1], i8[::1], i8[::1], u8[::1], i8[::1], i8[::1], i8[::1],"
        " i8[::1], i8[::1], i8[::1])"
    ],
    cache=True,
    nogil=True,
)
def grown(
    keys: NDArray[np.uint64],
    depth: NDArray[np.int64],
    node: NDArray[np.int64],
    ids: NDArray[np.int64],
    new_keys: NDArray[np.uint64],
    new_depth: NDArray[np.int64],
    new_node: NDArray[np.int64],
    places: NDArray[np.int64],
    shifts: NDArray[np.int64],
    bits: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> tuple[NDArray[Any], ...]:
    """`with_leaves`, then `added_nodes` of these: a call costs as much as a few new leaves do."""
    columns = with_leaves(keys, depth, node, ids, new_keys, new_depth, new_node, places)
    return columns + added_nodes(*columns, shifts, bits, counts)
