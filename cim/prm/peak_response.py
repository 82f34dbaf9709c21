"""Peak response maps: which pixels a peak comes from (METHOD section 2; PRM paper, section 3.2).

Every convolution passes its gradient back as a probability: with U its input shifted by the image's
minimum, W+ the positive part of its weights and Z = conv(U, W+), it gives U * conv_transpose(grad / Z, W+).
U, W+ and Z do not depend on the peak: one forward pass makes them, and every peak only goes back through it,
alone or with others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SMALLEST = 1e-10  # Z below this passes nothing back


class ProbabilisticConvolutions(TorchFunctionMode):
    """Inside this context every 2-d convolution has the rule above as its backward pass.

    No model is touched: the rule belongs to the context, and ends with it, whatever happens inside.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d:
            return _convolution(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def peak_responses(net: nn.Module, image: Tensor, index: np.ndarray, *, batch: int | None = None) -> np.ndarray:
    """Peak response maps, each summing to 1 (or 0 where nothing comes back).

    Args:
        net: image [1, 3, s, s] -> response maps [1, C, h, w]; in eval mode, any layers around its convolutions.
        image: float [3, s, s], on the network's device.
        index: int [P, 3], class, row and column of every peak.
        batch: peaks sent back together; memory grows with it. None: 1 on a CPU, which gains nothing from more
            (docs/PERFORMANCE.md), 8 elsewhere.

    Returns:
        float32 [P, s, s].

    Raises:
        ValueError: the network is in train mode, where photos of a batch influence each other.
    """
    if net.training:
        raise ValueError("peak responses need a network in eval mode: call net.eval()")
    if not len(index):
        return np.zeros((0, *image.shape[-2:]), np.float32)
    leaf = image.detach()[None].clone().requires_grad_()
    with torch.enable_grad(), ProbabilisticConvolutions():
        maps = net(leaf)
        at = torch.as_tensor(np.asarray(index), dtype=torch.int64, device=maps.device)
        values = maps[0, at[:, 0], at[:, 1], at[:, 2]]
    batch = batch or (1 if leaf.device.type == "cpu" else 8)
    starts = torch.eye(len(values), dtype=values.dtype, device=values.device).split(batch)
    responses = []
    for number, ones in enumerate(starts):
        keep = number + 1 < len(starts)
        back = _backward(values, leaf, ones, keep)
        total = back.sum(1).clamp(min=0)
        scale = total.sum((1, 2), keepdim=True)
        responses.append((total / scale.masked_fill(scale == 0, 1)).float().cpu())
    return torch.cat(responses).numpy()


def _backward(values: Tensor, leaf: Tensor, ones: Tensor, keep: bool) -> Tensor:
    """Gradients [n, 3, s, s] of n weighted sums (rows of ``ones``) of ``values`` [P]."""
    if len(ones) == 1:  # a plain pass is a little faster than a batch of one
        return torch.autograd.grad(values, leaf, ones[0], retain_graph=keep)[0]
    return torch.autograd.grad(values, leaf, ones, is_grads_batched=True, retain_graph=keep)[0][:, 0]


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    stride, dilation = _pair(stride), _pair(dilation)
    if padding == "same":  # odd kernels: the same on both sides
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, weight.shape[2:], strict=True))
    padding = (0, 0) if padding == "valid" else _pair(padding)
    return _Convolution.apply(x, weight, bias, (stride, padding, dilation, groups))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


class _Convolution(torch.autograd.Function):
    """conv2d forward; back to its input as a probability, and nothing back to its parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
        shifted = x - x.amin((1, 2, 3), keepdim=True)
        positive = weight.clamp(min=0)
        total = functional.conv2d(shifted, positive, None, *geometry)
        inverse = torch.where(total < _SMALLEST, 0, 1 / total)
        ctx.save_for_backward(shifted, positive, inverse)
        ctx.geometry = geometry
        return functional.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        shifted, positive, inverse = ctx.saved_tensors
        return shifted * _transposed(grad * inverse, positive, shifted.shape[2:], ctx.geometry), None, None, None


def _transposed(grad: Tensor, weight: Tensor, size: Any, geometry: tuple[Any, ...]) -> Tensor:
    """Input gradient of a convolution, for inputs of ``size``."""
    stride, padding, dilation, groups = geometry
    if weight.shape[2:] == (1, 1) and stride == (1, 1) and padding == (0, 0) and groups == 1:
        return functional.conv2d(grad, weight.transpose(0, 1))  # three times as fast on a CPU
    # What a strided convolution did not reach at the far edge has to come back as zeros.
    spare = tuple(
        size[axis]
        - ((grad.shape[axis - 2] - 1) * stride[axis] - 2 * padding[axis])
        - dilation[axis] * (weight.shape[axis + 2] - 1)
        - 1
        for axis in (0, 1)
    )
    return functional.conv_transpose2d(grad, weight, None, stride, padding, spare, groups, dilation)
