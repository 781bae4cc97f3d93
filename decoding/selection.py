"""The compiled core of the expansion: what `expand` and `grow_all` run on CPU.

Many beams are grown by one call. For each, rows are visited best first; a row's log-softmax over
the whole codebook is fused in as its maximum and the logarithm of its sum, and only the scores of
children that can still win are computed:

- log-probabilities are not positive, so once `width` candidates are known, rows whose own score is
  below the worst of them are not even normalised;
- a row with many children looks for codes above the bound first, block by block, and asks the trie
  for those alone, so its cost hardly depends on the size of the catalogue.

A candidate is one integer, the better the smaller: its score, mapped so that integers sort as
floats do, above (rank of its parent's SID among the rows, code). That is the order of the result,
ties included, and it needs no node numbers. A score of -inf is dead: such rows have no children,
such candidates are not kept, and NaN counts as dead.

e^x is 2^n · 2^r with |r| ≤ 1/2 and a polynomial for 2^r (relative error 1e-7, our own minimax fit).
"""

# To the type checker an element of an array may be an array, and intrinsics take one argument more.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from index.trie import Codes, Nodes

Floats = NDArray[np.float32]

# Columns of the table of beams, one int64 row per beam.
FIRST_ROW, ROWS, FIRST_LOGITS, PRIOR, WIDTH, FIRST_SLOT, BITS = range(7)
ADDED, ADDED_PARENTS, ADDED_STARTS, ADDED_CODES = range(7, 11)
NO_PRIOR = -1

# Codes are compared in blocks; the bits of a block are one word.
_BLOCK = 64
_INT32 = ir.IntType(32)
# Rows with more children may be searched from the codes, not from the children: where finding the
# marked codes among the children costs less than looking at each child.
_MANY_CHILDREN = 96
_FIND_COST = 16
_MIN_BUFFER = 32
_LOWEST = np.float32(np.finfo(np.float32).min)
_MINUS_INFINITY = np.float32(-np.inf)
# Puts -0 above a threshold that would be 0.
_TINY = np.float32(1e-30)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_WORST = np.uint64(0xFFFFFFFFFFFFFFFF)

_LOG2_E = np.float32(1.4426950408889634)
# Adding it rounds to an integer, which then stands in the low bits.
_ROUND = np.float32(12582912.0)
_SMALLEST_EXPONENT = np.float32(-126.0)
_P1 = np.float32(0.6931469775984721)
_P2 = np.float32(0.24022242084919224)
_P3 = np.float32(0.055507337442443766)
_P4 = np.float32(0.009671512660564534)
_P5 = np.float32(0.001326472689913448)


class LevelArrays(NamedTuple):
    """The base trie at one level: the codes of its nodes, and the compact starts of the level above
    (`shift` < 0 and empty arrays at level 0, whose nodes are the root's children)."""

    codes: Codes
    start_base: NDArray[np.uint32]
    start_delta: NDArray[np.uint16]
    shift: int


class Rows(NamedTuple):
    """All rows of the beams: nodes int64, scores float32, and the ranks int64 of their SIDs within
    their beam, each (rows,); and room for what is found out about them, (rows,) each."""

    nodes: Nodes
    scores: Floats
    ranks: Nodes
    first: Nodes
    end: Nodes
    maximum: Floats
    log_sum: Floats


class Row(NamedTuple):
    """One row while it is visited: its values (K,), prior included, its own score, the maximum and
    the log-sum of its softmax, and the part of a key that says which row it is."""

    values: Floats
    score: np.float32
    maximum: np.float32
    log_sum: np.float32
    tie: np.uint64


class Scratch(NamedTuple):
    """Room for one beam at a time: the values of a row with its prior (K,), the maxima and marks of
    its blocks, and candidates."""

    values: Floats
    blocks: NDArray[np.int32]
    marks: NDArray[np.uint64]
    keys: NDArray[np.uint64]


class Grown(NamedTuple):
    """The kept prefixes; a beam's begin at its slot. `parents` are rows of the beam, `sources` rows
    of the logits; `counts` int64 (beams,) is how many each beam has."""

    nodes: Nodes
    parents: Nodes
    sources: Nodes
    codes: Nodes
    scores: Floats
    level_scores: Floats
    branching: NDArray[np.int32]
    ranks: Nodes
    counts: Nodes


@intrinsic
def _pointer(_typing: Any, address: Any) -> Any:
    """An address as a pointer."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), generate


@intrinsic
def _trailing_zeros(_typing: Any, word: Any) -> Any:
    """Position of the lowest set bit of a word that is not zero."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


def _load_block(builder: Any, address: Any, element: Any) -> Any:
    pointer = builder.inttoptr(address, ir.VectorType(element, _BLOCK).as_pointer())
    return builder.load(pointer, align=4)


def _splat(builder: Any, value: Any) -> Any:
    """A block that has the value in every place."""
    block = ir.VectorType(value.type, _BLOCK)
    one = builder.insert_element(ir.Constant(block, ir.Undefined), value, ir.IntType(32)(0))
    places = ir.Constant(ir.VectorType(ir.IntType(32), _BLOCK), None)
    return builder.shuffle_vector(one, ir.Constant(block, ir.Undefined), places)


@intrinsic
def _block_maximum(_typing: Any, address: Any) -> Any:
    """The largest of the float32 block at an address, as an ordered integer."""

    # Integers, since then a NaN needs no care.
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        raw = _load_block(builder, arguments[0], _INT32)
        sign = builder.ashr(raw, _splat(builder, _INT32(31)))
        ordered = builder.xor(raw, builder.and_(sign, _splat(builder, _INT32(0x7FFFFFFF))))
        kind = ir.FunctionType(_INT32, [ordered.type])
        name = f"llvm.vector.reduce.smax.v{_BLOCK}i32"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(reduce, [ordered])

    return types.int32(address), generate


@intrinsic
def _block_above(_typing: Any, address: Any, threshold: Any) -> Any:
    """One bit for each of the float32 block at an address: whether it reaches the threshold."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        values = _load_block(builder, arguments[0], ir.FloatType())
        above = builder.fcmp_ordered(">=", values, _splat(builder, arguments[1]))
        return builder.bitcast(above, ir.IntType(_BLOCK))

    return types.uint64(address, types.float32), generate


@njit(cache=True, nogil=True, inline="always")
def _worse(score: np.float32) -> np.uint64:
    """Unsigned integers, larger for worse scores; adding zero makes -0 and 0 one number."""
    raw = np.float32(score + np.float32(0.0)).view(np.uint32)
    if raw >> np.uint32(31):
        return np.uint64(raw)
    return np.uint64(~raw & np.uint32(0x7FFFFFFF))


@njit(cache=True, nogil=True, inline="always")
def _score_of(key: np.uint64) -> np.float32:
    raw = np.uint32(key >> np.uint64(32))
    if raw >> np.uint32(31):
        return np.uint32(raw).view(np.float32)
    return np.uint32(~raw & np.uint32(0x7FFFFFFF)).view(np.float32)


@njit(cache=True, nogil=True, inline="always")
def _bound_score(bound: np.uint64) -> np.float32:
    """The score below which nothing wins; -inf and NaN are always below."""
    return _LOWEST if bound == _WORST else _score_of(bound)


@njit(cache=True, nogil=True)
def _code_bits(codebook: int) -> int:
    """Bits of a code."""
    bits = 0
    while (codebook - 1) >> bits:
        bits += 1
    return bits


@njit(cache=True, nogil=True, inline="always")
def _ordered(raw: np.int32) -> np.int32:
    """Signed integers in the order of the floats with these bits; its own inverse."""
    return raw ^ ((raw >> np.int32(31)) & np.int32(0x7FFFFFFF))


@njit(cache=True, nogil=True)
def _maxima(values: Floats, blocks: NDArray[np.int32]) -> np.float32:
    """Fills the maximum of each block of codes, as ordered integers; returns the largest."""
    raw = values.view(np.int32)
    whole = len(values) // _BLOCK
    overall = np.int32(-0x80000000)
    for block in range(whole):
        blocks[block] = _block_maximum(values.ctypes.data + block * _BLOCK * 4)
        overall = max(overall, blocks[block])
    if whole * _BLOCK < len(values):
        largest = np.int32(-0x80000000)
        for position in range(whole * _BLOCK, len(values)):
            largest = max(largest, _ordered(raw[position]))
        blocks[whole] = largest
        overall = max(overall, largest)
    return np.int32(_ordered(overall)).view(np.float32)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _exp(value: np.float32) -> np.float32:
    """e^value for value ≤ 0; exactly 1 for 0."""
    scaled = value * _LOG2_E
    scaled = scaled if scaled > _SMALLEST_EXPONENT else _SMALLEST_EXPONENT
    shifted = np.float32(scaled + _ROUND)
    rest = scaled - (shifted - _ROUND)
    power = _P5 * rest + _P4
    power = power * rest + _P3
    power = power * rest + _P2
    power = power * rest + _P1
    power = np.float32(power * rest + np.float32(1.0))
    exponent = np.int32(shifted.view(np.int32) << np.int32(23))
    return np.int32(power.view(np.int32) + exponent).view(np.float32)


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def _log_sum(values: Floats, maximum: np.float32) -> np.float32:
    """log Σ e^(value - maximum), not negative."""
    total = np.float32(0.0)
    for position in range(len(values)):
        total += _exp(values[position] - maximum)
    return np.float32(np.log(total))


@njit(cache=True, nogil=True)
def _codes_above(values: Floats, first: int, threshold: np.float32) -> np.uint64:
    """One bit per code of the block at `first`: whether its value reaches the threshold."""
    if first + _BLOCK <= len(values):
        return _block_above(values.ctypes.data + first * 4, threshold)
    word = np.uint64(0)
    for position in range(len(values) - first):
        above = np.uint64(values[first + position] >= threshold)
        word |= above << np.uint64(position)
    return word


@njit(cache=True, nogil=True)
def _keep_smallest(keys: NDArray[np.uint64], count: int, wanted: int) -> None:
    """Quickselect: the `wanted` smallest of keys[:count] come first, in any order."""
    low, high = 0, count - 1
    while low < high:
        pivot = keys[(low + high) >> 1]
        left, right = low, high
        while left <= right:
            while keys[left] < pivot:
                left += 1
            while keys[right] > pivot:
                right -= 1
            if left <= right:
                keys[left], keys[right] = keys[right], keys[left]
                left += 1
                right -= 1
        if wanted - 1 <= right:
            high = right
        elif wanted - 1 >= left:
            low = left
        else:
            return


@njit(cache=True, nogil=True)
def _sort_by_byte(
    keys: NDArray[np.uint64], spare: NDArray[np.uint64], low_bit: int, bits: int
) -> None:
    """Stable sort of keys by their `bits` bits from `low_bit` on; `spare` has the same length."""
    counts = np.empty(256, dtype=np.int64)
    for shift in range(low_bit, low_bit + bits, 8):
        counts[:] = 0
        for key in keys:
            counts[(key >> np.uint64(shift)) & np.uint64(255)] += 1
        if counts[(keys[0] >> np.uint64(shift)) & np.uint64(255)] == len(keys):
            continue
        total = 0
        for byte in range(256):
            total, counts[byte] = total + counts[byte], total
        for key in keys:
            byte = np.int64((key >> np.uint64(shift)) & np.uint64(255))
            spare[counts[byte]] = key
            counts[byte] += 1
        keys[:] = spare


@njit(cache=True, nogil=True)
def _find_code(codes: Codes, first: int, end: int, codebook: int, code: int) -> int:
    """Position of a code in the ascending run [first, end) of codes, -1 where it is not."""
    # Codes are distinct, so a dense run leaves few places.
    low = first + max(0, code - (codebook - (end - first)))
    count = min(end, first + code + 1) - low
    if count <= 0:
        return -1
    while count > 1:
        half = count >> 1
        low = low + half if codes[low + half] <= code else low
        count -= half
    return low if codes[low] == code else -1


@njit(cache=True, nogil=True)
def _added_run(table: Nodes, node: int) -> tuple[int, int]:
    """The run of added children of a node, as positions in the level's added codes."""
    count = table[ADDED]
    parents = carray(_pointer(table[ADDED_PARENTS]), (count,), dtype=np.int64)
    place = np.searchsorted(parents, node)
    if place == count or parents[place] != node:
        return 0, 0
    starts = carray(_pointer(table[ADDED_STARTS]), (count + 1,), dtype=np.int64)
    return starts[place], starts[place + 1]


@njit(cache=True, nogil=True)
def _allowed_of(table: Nodes) -> NDArray[np.uint8]:
    """The filter's bits over the nodes of the level; of no length without a filter."""
    if table[BITS]:
        return carray(_pointer(table[BITS]), (1 << 62,), dtype=np.uint8)
    return np.empty(0, dtype=np.uint8)


@njit(cache=True, nogil=True)
def _count(allowed: NDArray[np.uint8], first: int, end: int) -> int:
    if not len(allowed):
        return end - first
    count = 0
    for node in range(first, end):
        count += allowed[node]
    return count


@intrinsic
def _set_bits(_typing: Any, word: Any) -> Any:
    """How many bits of a word are set."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def _prefetch(_typing: Any, address: Any) -> Any:
    """Asks for the memory at an address, which may be any, without waiting for it."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _INT32, _INT32, _INT32])
        name = "llvm.prefetch.p0"
        prefetch = cgutils.get_or_insert_function(builder.module, kind, name)
        builder.call(prefetch, [pointer, _INT32(0), _INT32(3), _INT32(1)])
        return context.get_dummy_value()

    return types.void(address), generate


@njit(cache=True, nogil=True)
def _buffer_size(width: int) -> int:
    """Candidates that are kept before the best are picked out."""
    return width + max(width, _MIN_BUFFER)


@njit(cache=True, nogil=True)
def new_scratch(width: int, codebook: int) -> Scratch:
    """Room for beams up to a width over so many codes."""
    values = np.empty(codebook, dtype=np.float32)
    blocks = (codebook + _BLOCK - 1) // _BLOCK
    maxima, marks = np.empty(blocks, dtype=np.int32), np.empty(blocks, dtype=np.uint64)
    return Scratch(values, maxima, marks, np.empty(_buffer_size(width), dtype=np.uint64))


@njit(cache=True, nogil=True, inline="always")
def _uncounted(array: Any) -> Any:
    """The same array, not counting references: counting is atomic, and would take most of the time
    of a short row. Only for arrays that the caller keeps."""
    return carray(_pointer(array.ctypes.data), array.shape, dtype=array.dtype)


@njit(cache=True, nogil=True, inline="always")
def _row_of(matrix: Floats, row: int) -> Floats:
    """A row of a matrix that the caller keeps, without counting references."""
    width = matrix.shape[1]
    return carray(_pointer(matrix.ctypes.data + 4 * row * width), (width,), dtype=np.float32)


@njit(cache=True, nogil=True)
def _find_children(table: Nodes, level: LevelArrays, rows: Rows) -> None:
    """Base children of each row. One loop for all, so that waits for memory overlap; for the same
    reason the first children's codes and bits are asked for."""
    n_above = len(level.start_delta) - 1
    base, delta, shift = _uncounted(level.start_base), _uncounted(level.start_delta), level.shift
    nodes, firsts, ends = _uncounted(rows.nodes), _uncounted(rows.first), _uncounted(rows.end)
    codes, code_size = level.codes.ctypes.data, level.codes.itemsize
    for row in range(table[FIRST_ROW], table[FIRST_ROW] + table[ROWS]):
        node = nodes[row]
        if shift < 0:
            firsts[row], ends[row] = 0, len(level.codes)
        elif 0 <= node < n_above:
            first = np.int64(base[node >> shift]) + np.int64(delta[node])
            firsts[row] = first
            ends[row] = np.int64(base[(node + 1) >> shift]) + np.int64(delta[node + 1])
            _prefetch(codes + first * code_size)
            if table[BITS]:
                _prefetch(table[BITS] + first)
        else:
            firsts[row] = ends[row] = 0


@njit(cache=True, nogil=True)
def _best_first(table: Nodes, rows: Rows) -> Nodes:
    """The live rows of a beam, best first."""
    first, count = table[FIRST_ROW], table[ROWS]
    order = np.empty(count, dtype=np.int64)
    live = 0
    ordered = True
    for row in range(first, first + count):
        if rows.scores[row] > _MINUS_INFINITY:
            ordered &= live == 0 or rows.scores[row] <= rows.scores[order[live - 1]]
            order[live] = row
            live += 1
    order = order[:live]
    if not ordered:
        order = order[np.argsort(-rows.scores[order])]
    return order


@njit(cache=True, nogil=True, inline="always")
def _keep(
    buffer: NDArray[np.uint64], count: int, bound: np.uint64, width: int, key: np.uint64
) -> tuple[int, np.uint64]:
    """Adds a candidate below the bound; returns how many there are and the new bound."""
    buffer[count] = key
    count += 1
    if count == len(buffer):
        _keep_smallest(buffer, count, width)
        return width, buffer[:width].max()
    if count == width and bound == _WORST:
        return count, buffer[:width].max()
    return count, bound


@njit(cache=True, nogil=True)
def _threshold(row: Row, bound: np.uint64) -> np.float32:
    """A value below which no code of the row wins; -inf while everything may."""
    if bound == _WORST:
        return _MINUS_INFINITY
    score = _score_of(bound)
    # Four roundings lie between a value and its candidate's score; each is far below this slack.
    size = abs(row.score) + abs(score) + abs(row.maximum) + row.log_sum
    slack = np.float32(1e-6) * size + _TINY
    return np.float32(score - row.score + row.log_sum + row.maximum - slack)


@njit(cache=True, nogil=True)
def _scan(
    row: Row,
    codes: Codes,
    first: int,
    end: int,
    allowed: NDArray[np.uint8],
    first_allowed: int,
    buffer: NDArray[np.uint64],
    count: int,
    bound: np.uint64,
    width: int,
) -> tuple[int, np.uint64]:
    """Considers the children codes[first:end]; the filter's bit of codes[i] is
    allowed[first_allowed + i]."""
    filtered = len(allowed) > 0
    threshold = _threshold(row, bound)
    # Unsigned, since else each index is checked for counting from the end.
    for position in range(np.uint64(first), np.uint64(end)):
        code = codes[position]
        value = row.values[code]
        if not value >= threshold:
            continue
        if filtered and not allowed[np.uint64(first_allowed) + position]:
            continue
        total = row.score + ((value - row.maximum) - row.log_sum)
        key = (_worse(total) << np.uint64(32)) | row.tie | np.uint64(code)
        # -inf and NaN are dead.
        if total >= _LOWEST and key < bound:
            count, bound = _keep(buffer, count, bound, width, key)
            threshold = _threshold(row, bound)
    return count, bound


@njit(cache=True, nogil=True)
def _mark(row: Row, bound: np.uint64, blocks: NDArray[np.int32], marks: NDArray[np.uint64]) -> int:
    """Marks the codes, legal or not, that may win: one bit each, a word per block. Returns how
    many there are."""
    threshold = _threshold(row, bound)
    least = _ordered(np.float32(threshold).view(np.int32))
    marked = np.uint64(0)
    for block in range(len(blocks)):
        marks[block] = np.uint64(0)
        if blocks[block] >= least:
            marks[block] = _codes_above(row.values, block * _BLOCK, threshold)
            marked += _set_bits(marks[block])
    return int(marked)


@njit(cache=True, nogil=True)
def _search(
    row: Row,
    marks: NDArray[np.uint64],
    codes: Codes,
    first: int,
    end: int,
    allowed: NDArray[np.uint8],
    buffer: NDArray[np.uint64],
    count: int,
    bound: np.uint64,
    width: int,
) -> tuple[int, np.uint64]:
    """Considers those of the children codes[first:end] whose codes are marked."""
    filtered = len(allowed) > 0
    bound_score = _bound_score(bound)
    for block in range(len(marks)):
        above = marks[block]
        while above:
            code = block * _BLOCK + np.int64(_trailing_zeros(above))
            above &= above - np.uint64(1)
            total = row.score + ((row.values[code] - row.maximum) - row.log_sum)
            if not total >= bound_score:
                continue
            key = (_worse(total) << np.uint64(32)) | row.tie | np.uint64(code)
            if key >= bound:
                continue
            node = _find_code(codes, first, end, len(row.values), code)
            if node >= 0 and (not filtered or allowed[node]):
                count, bound = _keep(buffer, count, bound, width, key)
                bound_score = _bound_score(bound)
    return count, bound


@njit(cache=True, nogil=True)
def _select(
    table: Nodes,
    part: int,
    parts: int,
    level: LevelArrays,
    rows: Rows,
    logits: Floats,
    priors: Floats,
    normalised: bool,
    scratch: Scratch,
) -> int:
    """The best candidates of a beam's live rows `part`, `part + parts`, ..., best row first, into
    scratch.keys[:width] in any order; returns how many there are."""
    codebook = logits.shape[1]
    code_bits = _code_bits(codebook)
    width = table[WIDTH]
    allowed = _allowed_of(table)
    own = _uncounted(scratch.values)
    blocks, marks = _uncounted(scratch.blocks), _uncounted(scratch.marks)
    buffer = _uncounted(scratch.keys)[: _buffer_size(width)]
    # Keys from the bound on cannot win: `width` better ones were seen.
    count, bound = 0, _WORST
    order = _best_first(table, rows)
    codes = _uncounted(level.codes)
    nodes, scores, ranks = _uncounted(rows.nodes), _uncounted(rows.scores), _uncounted(rows.ranks)
    firsts, ends = _uncounted(rows.first), _uncounted(rows.end)
    maxima, log_sums = _uncounted(rows.maximum), _uncounted(rows.log_sum)
    for place in range(part, len(order), parts):
        row = order[place]
        score = scores[row]
        if score < _bound_score(bound):
            break
        first, end = firsts[row], ends[row]
        first_added, end_added = _added_run(table, nodes[row]) if table[ADDED] else (0, 0)
        if first == end and first_added == end_added:
            continue
        values = _row_of(logits, row - table[FIRST_ROW] + table[FIRST_LOGITS])
        if table[PRIOR] >= 0:
            prior = _row_of(priors, table[PRIOR])
            for code in range(codebook):
                own[code] = values[code] + prior[code]
            values = own
        many = bound != _WORST and end - first > _MANY_CHILDREN
        maximum, log_sum = np.float32(0.0), np.float32(0.0)
        if not normalised or many:
            largest = _maxima(values, blocks)
            if not normalised:
                maximum, log_sum = largest, _log_sum(values, largest)
                # The best code's log-probability is -log_sum.
                if score - log_sum < _bound_score(bound):
                    continue
        maxima[row], log_sums[row] = maximum, log_sum
        tie = np.uint64(ranks[row]) << np.uint64(code_bits)
        one = Row(values, score, maximum, log_sum, tie)
        if many and _FIND_COST * _mark(one, bound, blocks, marks) < end - first:
            count, bound = _search(
                one, marks, codes, first, end, allowed, buffer, count, bound, width
            )
        else:
            count, bound = _scan(one, codes, first, end, allowed, 0, buffer, count, bound, width)
        if first_added < end_added:
            added = carray(_pointer(table[ADDED_CODES]), (end_added,), dtype=np.uint16)
            n_base = len(codes)
            count, bound = _scan(
                one, added, first_added, end_added, allowed, n_base, buffer, count, bound, width
            )
    if count > width:
        _keep_smallest(buffer, count, width)
        count = width
    return count


@njit(cache=True, nogil=True)
def _emit(
    beam: int,
    table: Nodes,
    level: LevelArrays,
    rows: Rows,
    logits: Floats,
    priors: Floats,
    keys: NDArray[np.uint64],
    grown: Grown,
) -> None:
    """Writes what the chosen keys (m,), in any order, stand for."""
    count = len(keys)
    grown.counts[beam] = count
    if not count:
        return
    codebook = logits.shape[1]
    code_bits = np.uint64(_code_bits(codebook))
    code_mask = (np.uint64(1) << code_bits) - np.uint64(1)
    first_row, n_rows = table[FIRST_ROW], table[ROWS]
    allowed = _allowed_of(table)
    row_of_rank = np.empty(n_rows, dtype=np.int64)
    for row in range(first_row, first_row + n_rows):
        row_of_rank[rows.ranks[row]] = row
    rank_bits = _code_bits(n_rows)
    # First into SID order, which gives the ranks, then by score: both sorts are stable.
    spare = np.empty(count, dtype=np.uint64)
    _sort_by_byte(keys, spare, 0, np.int64(code_bits) + rank_bits)
    ties = np.empty(count, dtype=np.uint64)
    place_of = np.empty(count, dtype=np.int64)
    for rank in range(count):
        ties[rank] = keys[rank] & _LOW_HALF
        keys[rank] = (keys[rank] & ~_LOW_HALF) | np.uint64(rank)
    _sort_by_byte(keys, spare, 32, 32)
    slot = table[FIRST_SLOT]
    for place in range(count):
        rank = np.int64(keys[place] & _LOW_HALF)
        grown.scores[slot + place] = _score_of(keys[place])
        grown.ranks[slot + place] = rank
        place_of[rank] = slot + place
    codes, n_base = _uncounted(level.codes), len(level.codes)
    firsts, ends, nodes = _uncounted(rows.first), _uncounted(rows.end), _uncounted(rows.nodes)
    parent, branches = -1, 0
    first, end, first_added, end_added = 0, 0, 0, 0
    # Children of one parent stand together in SID order.
    for rank in range(count):
        row = row_of_rank[ties[rank] >> code_bits]
        code = np.int64(ties[rank] & code_mask)
        if row != parent:
            parent = row
            first, end = firsts[row], ends[row]
            branches = _count(allowed, first, end)
            if table[ADDED]:
                first_added, end_added = _added_run(table, nodes[row])
                branches += _count(allowed, n_base + first_added, n_base + end_added)
        node = _find_code(codes, first, end, codebook, code)
        if node < 0:
            added = carray(_pointer(table[ADDED_CODES]), (end_added,), dtype=np.uint16)
            node = n_base + _find_code(added, first_added, end_added, codebook, code)
        place = place_of[rank]
        source = table[FIRST_LOGITS] + row - first_row
        value = logits[source, code]
        if table[PRIOR] >= 0:
            value += priors[table[PRIOR], code]
        grown.nodes[place] = node
        grown.parents[place] = row - first_row
        grown.sources[place] = source
        grown.codes[place] = code
        grown.level_scores[place] = (value - rows.maximum[row]) - rows.log_sum[row]
        grown.branching[place] = branches


@njit(cache=True, nogil=True)
def grow_beams(
    first_beam: int,
    end_beam: int,
    tables: Nodes,
    codes: Codes,
    start_base: NDArray[np.uint32],
    start_delta: NDArray[np.uint16],
    shift: int,
    nodes: Nodes,
    scores: Floats,
    ranks: Nodes,
    logits: Floats,
    priors: Floats,
    normalised: bool,
    whole: Nodes,
    real: Floats,
    branching: NDArray[np.int32],
    counts: Nodes,
) -> None:
    """Grows the beams [first_beam, end_beam) of the table, int64 (beams, COLUMNS), by one level.

    `codes`, `start_base`, `start_delta`, `shift`: the base trie at this level: the codes of its
    nodes, and the compact starts of the level above (empty arrays and -1 at level 0, whose nodes
    are the root's children). `nodes` int64, `scores` float32, `ranks` int64 of the SIDs within
    their beam: all rows (rows,). `logits` float32 (logit rows, K); `priors` float32 (priors, K),
    added first; `normalised`: the logits are log-probabilities already, all ≤ 0.

    Written are, from each beam's slot on: `whole` int64 (5, slots): nodes, parents as rows of the
    beam, parents as rows of the logits, codes, ranks; `real` float32 (2, slots): scores and the
    step's log-probabilities; `branching` int32 (slots,); and `counts` int64 (beams,), how many.
    """
    n_rows = len(nodes)
    level = LevelArrays(codes, start_base, start_delta, shift)
    ends = np.empty((2, n_rows), dtype=np.int64)
    softmax = np.empty((2, n_rows), dtype=np.float32)
    rows = Rows(nodes, scores, ranks, ends[0], ends[1], softmax[0], softmax[1])
    grown = Grown(
        whole[0], whole[1], whole[2], whole[3], real[0], real[1], branching, whole[4], counts
    )
    scratch = new_scratch(tables[first_beam:end_beam, WIDTH].max(), logits.shape[1])
    for beam in range(first_beam, end_beam):
        table = tables[beam]
        _find_children(table, level, rows)
        count = _select(table, 0, 1, level, rows, logits, priors, normalised, scratch)
        _emit(beam, table, level, rows, logits, priors, scratch.keys[:count], grown)
