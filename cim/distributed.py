"""The few things several training processes tell each other; with one process every function is a no-op."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET = 2**24  # gradient elements sent together: 64 MB of float32


@contextmanager
def session(device: str | torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started (environment variable WORLD_SIZE) and yield this one's device.

    On CUDA each process gets the card of its LOCAL_RANK. A group that already exists is used and left open.
    """
    device = torch.device(device)
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if started:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        if started:
            dist.destroy_process_group()


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process, 0..world-1."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes files and shows progress."""
    return rank() == 0


def from_main(value: Any) -> Any:
    """The main process's value, everywhere; small picklable things."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def sum_numbers(values: Sequence[float], device: torch.device) -> list[float]:
    """Element-wise sums over all processes."""
    if world() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Gradients summed over all processes, in place.

    A parameter that only some processes used counts as zero on the others; one that nobody used keeps
    no gradient, as it would in a single process.
    """
    if world() == 1 or not parameters:
        return
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    dist.all_reduce(used)
    gradients = []
    for parameter, count in zip(parameters, used.tolist(), strict=True):
        if count:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([g.reshape(-1) for g in bucket])
        dist.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def share_state(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Every process takes over the main process's weights, momentum buffers and gradient scale."""
    if world() == 1:
        return
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, present in zip(parameters, from_main([_momentum(optimizer, p) is not None for p in parameters])):
        if present:
            buffer = _momentum(optimizer, parameter)
            if buffer is None:
                buffer = optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            dist.broadcast(buffer, src=0)
    if scaler.is_enabled():
        scaler.load_state_dict(from_main(scaler.state_dict()))


def wait() -> None:
    """Until every process is here."""
    if world() > 1:
        dist.barrier()


def _momentum(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Tensor | None:
    return optimizer.state.get(parameter, {}).get("momentum_buffer")


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
