"""Cuts a task's model into shards, one for each rank: FSDP2. Beside `ranks`, nothing else knows torch.distributed."""

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from lite_probe.errors import InputError, UsageError
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.ranks import ProcessRanks
from lite_probe.operators.sharded import ShardRanks, local
from lite_probe.task import Task
from lite_probe.vectors.layout import is_sharded

_OWN, _FUSED = "eager", "sdpa"  # attention, by its names in transformers
_ROUNDINGS = 1e3  # that two ways to compute a loss may be apart


def shard_task(task: Task, ranks: ProcessRanks, device: torch.device) -> None:
    """Leave each rank a shard of every parameter of a task's model, in place, and let the ranks measure it together.

    A pass gathers one layer at a time: the modules of the largest `nn.ModuleList`, and the rest of the model together.
    A model of transformers goes over to fused attention, where that leaves the loss as it is: nothing is differentiated
    twice.

    Args:
        task: The same on every rank, whole, on the CPU or the device; its batches must be on the device.
        ranks: The processes.
        device: Of this rank; layers move there one by one as they are cut.

    Raises:
        InputError: If the model is sharded already.
        UsageError: If torch adds up gradients only of what every rank uses.
    """
    model = task.model
    if not can_shard():
        raise UsageError(
            "expected a torch whose FSDP2 adds up gradients of what only some ranks use, which 2.13 does, got "
            f"{torch.__version__}",
            "update torch, or leave out --sharded",
        )
    if any(map(is_sharded, model.parameters())):
        raise InputError("expected a whole model to shard, got shards", "give every rank the whole of it")
    mesh = init_device_mesh(device.type, (ranks.count,))
    for module in dict.fromkeys([*layers(model), model]):
        # Kept after the forward pass, a layer would not see that its shards were moved.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # sums, and not means, over the ranks
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
            module.set_reduce_scatter_unused_params(True)  # a rank's batches may leave out what another's use
    trainable: list[Any] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sizes = ranks.from_every([local(parameter).numel() for parameter in trainable])
    task.ranks = ShardRanks(ranks, [list(of_one) for of_one in zip(*sizes, strict=True)])
    _fuse_attention(task)


def can_shard() -> bool:
    """Whether this torch's FSDP2 adds up gradients of what only some ranks use, as experts of a mixture."""
    return hasattr(FSDPModule, "set_reduce_scatter_unused_params")


def _fuse_attention(task: Task) -> None:
    """Let a model of transformers call torch's attention, where its own has nothing that torch's leaves out."""
    choose = getattr(task.model, "set_attn_implementation", None)
    batches = [*task.evaluation, *task.train][:1]
    if choose is None or not batches or getattr(task.model.config, "_attn_implementation", None) != _OWN:
        return
    with preserve_state(task.model, fused_attention=True), torch.no_grad():
        expected = task.loss(batches[0])[0]
        try:
            choose(_FUSED)
        except ValueError:  # the model has no such attention
            return
        found = task.loss(batches[0])[0]
    rounding = _ROUNDINGS * torch.finfo(expected.dtype).eps
    is_same = bool((found - expected).abs() <= rounding * expected.abs())
    if not task.ranks.once(lambda: is_same):
        choose(_OWN)


def layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model: what the `nn.ModuleList` with most parameters holds; none where there is none.

    What it holds may be lists again, which have no pass of their own to gather for: they are left to the model.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    largest = max(lists, key=_size, default=nn.ModuleList())
    return [module for module in largest if not isinstance(module, nn.ModuleList | nn.ModuleDict)]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
