"""One training over several processes: weights sharded (FSDP2), every process a part of each batch.

    torchrun --nproc-per-node N -m server.cli.main train sft …

gloo between processes on CPUs, nccl between CUDA devices. Parameters, gradients and optimiser live
sharded by layer and are gathered for a layer while it runs. Gradients are means over the processes,
which take equal shares of a batch, so training is that of one process up to rounding (means over
positions of text, whose number differs between the shares, up to their weights).
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from models.transformer import Qwen3

_SIZE, _LOCAL = "WORLD_SIZE", "LOCAL_RANK"


class Process(NamedTuple):
    """This process among those of a training."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and reports."""
        return self.rank == 0


def this_process() -> Process:
    """Alone, unless processes were joined (`joined`)."""
    if not dist.is_initialized():
        return Process()
    return Process(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined(device: str) -> Generator[str]:
    """Join the processes that torchrun started, if it did; gives the device of this one."""
    if int(os.environ.get(_SIZE, "1")) < 2:
        yield device
        return
    cuda = device.startswith("cuda")
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield f"cuda:{os.environ[_LOCAL]}" if cuda else device
    finally:
        dist.destroy_process_group()


def shard(model: Qwen3) -> None:
    """Spread the parameters over the processes, in place; nothing where there is one only."""
    process = this_process()
    if process.size == 1:
        return
    mesh = init_device_mesh(model.lm_head.weight.device.type, (process.size,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # Training calls these, not `forward`; they have to gather the weights like it.
    for name in ("embed", "hidden"):
        register_fsdp_forward_method(model, name)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of a sharded one every process must ask for it."""
    return cast(Tensor, cast(Any, tensor).full_tensor()) if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, own: Tensor) -> Tensor:
    """A whole tensor in the form of another of the same shape, which may be sharded."""
    if not isinstance(own, DTensor):
        return tensor
    return cast(Tensor, distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements))


def gathered(model: Qwen3) -> Qwen3:
    """The whole model in this process; itself where nothing is sharded. All processes must ask."""
    if this_process().size == 1:
        return model
    tensors = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    made = Qwen3(model.config)
    made.load_state_dict(tensors)
    return made.train(model.training)


def agreed(value: float) -> float:
    """The first process's value, in all: clocks differ, decisions must not."""
    if this_process().size == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    if dist.get_backend() == "nccl":
        shared = shared.cuda()
    dist.broadcast(shared, src=0)
    return float(shared)


def wait() -> None:
    """For all processes; returns at once where there is one."""
    if this_process().size > 1:
        dist.barrier()
