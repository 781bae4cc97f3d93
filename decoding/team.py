"""Compiled loops shared among the threads of torch's products.

Between two matrix products torch's OpenMP threads spin, waiting for the next: a loop that is handed
to them starts within a microsecond, where a thread pool of Python's would take tens and wait for
the interpreter. The loop is cut into parts, and whichever thread is free takes the next.

Where torch was built without the GNU interface of OpenMP, the calling thread does everything.
"""

# Intrinsics take one argument more than the type checker sees.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_PARTS_PER_THREAD = 4
_FAILED = 3
_INT32, _INT64, _ANY = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()


class Team(NamedTuple):
    """Threads for a loop, the caller's own among them, and the address of what starts them."""

    threads: int
    start: int


ALONE = Team(1, 0)


def torch_team() -> Team:
    """The threads that torch's next product in this thread would use."""
    threads = torch.get_num_threads()
    return Team(threads, _start()) if threads > 1 and _start() else ALONE


@cache
def _start() -> int:
    """Address of GOMP_parallel in the OpenMP library that torch itself has loaded; 0 if none."""
    torch_library: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    try:
        start = ctypes.CDLL(torch_library.__file__).GOMP_parallel
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(start, ctypes.c_void_p).value or 0


def shared(kernel: Any) -> Any:
    """For compiled code: run(team, begin, end, arguments) calls kernel(first, last, *arguments) for
    parts of [begin, end), each once, in any order and thread.

    `kernel` is compiled by njit and fails only for want of memory, which `run` raises then;
    `arguments` is a tuple.
    """

    @intrinsic
    def run(typing: Any, team: Any, begin: Any, end: Any, arguments: Any) -> Any:
        called = types.Dispatcher(kernel).get_call_type(
            typing, (types.int64, types.int64, *arguments.types), {}
        )

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            compiled = kernel.get_compile_result(called)
            return _generate(context, builder, signature, values, compiled, called)

        return types.void(team, begin, end, arguments), generate

    return run


def _generate(
    context: Any, builder: Any, signature: Any, values: Any, kernel: Any, called: Any
) -> Any:
    """The call of `run`: through GOMP_parallel, or of the same loop where there is no team."""
    context.active_code_library.add_linking_library(kernel.library)
    threads, start = cgutils.unpack_tuple(builder, values[0], 2)
    begin, end = (
        context.cast(builder, value, kind, types.int64)
        for value, kind in zip(values[1:3], signature.args[1:3], strict=True)
    )
    count = builder.sub(end, begin)
    many = builder.and_(
        builder.icmp_signed(">", threads, _INT64(1)), builder.icmp_signed(">", count, _INT64(1))
    )
    part = builder.sdiv(count, builder.mul(threads, _INT64(_PARTS_PER_THREAD)))
    part = builder.select(many, part, count)
    part = builder.select(builder.icmp_signed(">", part, _INT64(1)), part, _INT64(1))
    arguments = cgutils.unpack_tuple(builder, values[3], len(signature.args[3]))
    fields = [begin, end, part, _INT64(0), *arguments]
    kind = ir.LiteralStructType([value.type for value in fields])
    room = cgutils.alloca_once(builder, kind)
    for place, value in enumerate(fields):
        builder.store(value, _field(builder, room, place))
    body = _body(context, builder.module, kind, kernel.fndesc, called)
    data = builder.bitcast(room, _ANY)
    with builder.if_else(many) as (together, alone):
        with together:
            run = ir.FunctionType(ir.VoidType(), [body.type, _ANY, _INT32, _INT32])
            team_size = builder.trunc(threads, _INT32)
            builder.call(
                builder.inttoptr(start, run.as_pointer()), [body, data, team_size, _INT32(0)]
            )
        with alone:
            builder.call(body, [data])
    failed = builder.icmp_signed("!=", builder.load(_field(builder, room, _FAILED)), _INT64(0))
    with builder.if_then(failed, likely=False):
        context.call_conv.return_user_exc(builder, MemoryError, ("no room for a shared loop",))
    return context.get_dummy_value()


def _field(builder: Any, room: Any, place: int) -> Any:
    return builder.gep(room, [_INT32(0), _INT32(place)], inbounds=True)


def _body(context: Any, module: Any, kind: Any, kernel: Any, called: Any) -> Any:
    """What each thread runs. Fields: where the next part begins, taken by atomic addition; the end;
    a part's size; whether a part failed; the arguments."""
    kind_of_body = ir.FunctionType(ir.VoidType(), [_ANY])
    body = ir.Function(module, kind_of_body, module.get_unique_name("share_parts"))
    body.linkage = "internal"
    entry, take, work, done = (
        body.append_basic_block(name) for name in ("entry", "take", "work", "done")
    )
    builder = ir.IRBuilder(entry)
    room = builder.bitcast(body.args[0], kind.as_pointer())
    last, size, _, *arguments = (
        builder.load(_field(builder, room, place)) for place in range(1, len(kind.elements))
    )
    builder.branch(take)
    builder.position_at_end(take)
    first = builder.atomic_rmw("add", _field(builder, room, 0), size, "monotonic")
    builder.cbranch(builder.icmp_signed("<", first, last), work, done)
    builder.position_at_end(work)
    until = builder.add(first, size)
    until = builder.select(builder.icmp_signed("<", until, last), until, last)
    status, _ = context.call_internal_no_propagate(
        builder, kernel, called, [first, until, *arguments]
    )
    with builder.if_then(status.is_error, likely=False):
        builder.store(_INT64(1), _field(builder, room, _FAILED))
    builder.branch(take)
    builder.position_at_end(done)
    builder.ret_void()
    return body
