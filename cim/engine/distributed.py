"""The few things several training processes tell each other; with one process every function is a no-op."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cim.core.errors import CimError

_BUCKET = 2**24  # gradient elements sent together: 64 MB of float32
_T = TypeVar("_T")
_PATIENCE = timedelta(days=1)  # shares of a data set end at different times; torchrun ends all when one dies


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
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
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


def main_first(function: Callable[[], _T]) -> _T:
    """What ``function`` returns, called by the main process and then by the others: what it keeps on disk spares them.

    Raises:
        CimError: the main process's, on all.
    """
    if world() == 1:
        return function()
    mine: list[_T] = []
    error = None
    if is_main():
        try:
            mine.append(function())
        except CimError as raised:
            error = raised
    error = from_main(error)
    if error is not None:
        raise error
    return mine[0] if mine else function()


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
    """Every process takes over the main process's weights, state of the optimizer and gradient scale."""
    if world() == 1:
        return
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, layout in zip(parameters, from_main([_layout(optimizer, p) for p in parameters]), strict=True):
        for name, (shape, kind, device) in layout.items():
            mine = optimizer.state[parameter].get(name, torch.zeros(shape, dtype=kind))
            sent = mine.to(parameter.device)  # Adam counts its steps on the CPU; NCCL sends from GPUs alone
            dist.broadcast(sent, src=0)
            optimizer.state[parameter][name] = sent if device != "cpu" else sent.cpu()
    if scaler.is_enabled():
        scaler.load_state_dict(from_main(scaler.state_dict()))


def wait() -> None:
    """Until every process is here."""
    if world() > 1:
        dist.barrier()


def share_norms(model: nn.Module, device: torch.device) -> None:
    """Batch norms that learn measure the images of all processes together, as one process would; in place.

    Raises:
        CimError: without CUDA, where PyTorch cannot do that.
    """
    if world() == 1:
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.training:
                if device.type != "cuda":
                    raise CimError(
                        "batch norms that learn need CUDA on several processes",
                        found=f"{world()} processes on {device.type}",
                        fix="start one process, or keep the norms (prm.train_norms=false)",
                    )
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))


def _layout(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, tuple[list[int], torch.dtype, str]]:
    """Name -> shape, type and device of the tensors that the optimizer keeps for a parameter."""
    state = optimizer.state.get(parameter, {})
    return {
        name: (list(value.shape), value.dtype, value.device.type)
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


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
