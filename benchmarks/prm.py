"""Peak response maps against one backward pass per peak; first labels against pictures of masks. Times are medians."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional

from cim.cli.common import parser, run
from cim.core.regions import RegionSet
from cim.prm.assign import assign_from_peaks
from cim.prm.network import Peaks, ResponseNet, build_response_net
from cim.prm.peak_response import peak_responses


def get_parser() -> argparse.ArgumentParser:
    result = parser(__doc__, "OMP_NUM_THREADS=1 python benchmarks/prm.py --backbones resnet50_c5 mobilenet_v2")
    result.add_argument("--backbones", nargs="*", default=["resnet50_c5"])
    result.add_argument("--peaks", nargs="+", type=int, default=[1, 5, 20])
    result.add_argument("--side", type=int, default=448)
    result.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="peaks sent back together, to compare")
    result.add_argument("--proposals", nargs="*", type=int, default=[200, 1000])
    result.add_argument("--repeats", type=int, default=3)
    result.add_argument("--device", default="cpu")
    return result


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    for name in args.backbones:
        responses(name, args)
    for count in args.proposals:
        labels(count, args.repeats)


def median(function: Callable[[], object], repeats: int) -> float:
    """Seconds of processor time on a CPU that others use too, of wall time on a GPU; after one warm-up."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    function()
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return float(np.median(times))


# ---------------------------------------------------------------------- peak response maps


def responses(name: str, args: argparse.Namespace) -> None:
    """One row per number of peaks."""
    torch.manual_seed(0)
    net = build_response_net(name, 20, weights="none", image_size=args.side).eval().to(args.device)
    image = torch.randn(3, args.side, args.side, device=args.device)
    with torch.inference_mode():
        grid = net(image[None]).shape[-2:]
    forward = median(lambda: net(image[None]), args.repeats)
    print(f"\n{name}, {args.side} pixels, a plain forward pass takes {forward:.2f} s")
    print(
        "| peaks | one plain backward each, s |", " | ".join(f"ours, {b} together, s" for b in args.batches), "| gain |"
    )
    print("|--:" * (3 + len(args.batches)) + "|")
    rng = np.random.default_rng(0)
    for count in args.peaks:
        index = np.stack([rng.integers(0, high, count) for high in (20, *grid)], 1)
        np.testing.assert_allclose(
            plain_responses(net, image, index[:1]), peak_responses(net, image, index[:1]), atol=1e-5
        )
        plain = median(lambda at=index: plain_responses(net, image, at), 1)
        ours = [
            median(lambda at=index, b=b: peak_responses(net, image, at, batch=b), args.repeats) for b in args.batches
        ]
        columns = " | ".join(f"{seconds:.2f}" for seconds in ours)
        print(f"| {count} | {plain:.2f} | {columns} | {plain / min(ours):.1f}x |", flush=True)


def plain_responses(net: ResponseNet, image: Tensor, index: np.ndarray) -> np.ndarray:
    """The obvious way: one forward pass through patched convolutions, then a whole ``backward()`` for every peak."""
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    for layer in layers:
        layer.forward = _patched(layer)
    leaf = image[None].clone().requires_grad_()
    maps = net(leaf)[0]
    found = []
    for at in index:
        leaf.grad = None
        maps[tuple(at)].backward(retain_graph=True)
        response = leaf.grad[0].sum(0).clamp(min=0)
        found.append((response / response.sum().clamp(min=1e-30)).cpu().numpy())
    for layer in layers:
        del layer.forward
    net.zero_grad()
    return np.stack(found)


def _patched(layer: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """Output of the convolution, gradient of U * conv_transpose(grad / Z, W+), with autograd doing the latter."""

    def forward(x: Tensor) -> Tensor:
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        shifted, positive = (x - x.min()).detach(), layer.weight.clamp(min=0)
        total = functional.conv2d(shifted, positive.detach(), None, *geometry)
        inverse = torch.where(total < 1e-10, 0, 1 / total)
        # shifted * (x / shifted) has the value x and the gradient "shifted".
        carrier = functional.conv2d(shifted * (x - x.detach()), positive, None, *geometry) * inverse
        return functional.conv2d(x, layer.weight, layer.bias, *geometry).detach() + carrier

    return forward


# ---------------------------------------------------------------------- first labels


def labels(count: int, repeats: int) -> None:
    """Images per second for a photo of 375 x 500 with four peaks."""
    masks = hierarchy_masks(count)
    regions = RegionSet.from_masks(masks)
    peaks = Peaks(
        np.array([[0, 30, 30], [0, 80, 90], [1, 60, 50], [1, 20, 95]]), np.float32([12, 30, 25, 11]), (112, 112)
    )
    slow, ours = pixel_labels(masks, peaks), assign_from_peaks(regions, peaks)
    np.testing.assert_array_equal(ours.class_ids, slow[0])
    np.testing.assert_array_equal(ours.cluster, slow[1])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "regions.npz"
        regions.save(path)
        obvious = median(lambda: pixel_labels(masks, peaks), repeats)
        fast = median(lambda: [assign_from_peaks(fresh(regions), peaks) for _ in range(20)], repeats) / 20
        read = median(lambda: [assign_from_peaks(RegionSet.load(path), peaks) for _ in range(20)], repeats) / 20
    atoms = regions.members.shape[1]
    print(f"\nfirst labels, {count} proposals ({atoms} atoms), 4 peaks")
    print("| images per second | gain |\n|--|--:|--:|")
    print(f"| pixels, masks in memory | {1 / obvious:.1f} | 1x |")
    print(f"| atoms, in memory | {1 / fast:.0f} | {obvious / fast:.0f}x |")
    print(f"| atoms, reading the file too | {1 / read:.0f} | {obvious / read:.0f}x |", flush=True)


def fresh(regions: RegionSet) -> RegionSet:
    """The same without anything remembered from earlier calls."""
    return RegionSet(regions.atoms, regions.members, regions.scores)


def hierarchy_masks(count: int, size: tuple[int, int] = (375, 500), cells: int = 300) -> np.ndarray:
    """bool [count, H, W] like those of real makers: unions of superpixels, many around the same few places."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: size[0], : size[1]]
    y, x = rng.uniform(0, size[0], cells), rng.uniform(0, size[1], cells)
    nearest = cKDTree(np.stack([y, x], 1)).query(np.stack([rows.ravel(), columns.ravel()], 1))[1].reshape(size)
    about = rng.choice([90, 180, 280], count) + rng.normal(0, 15, count)
    across = rng.choice([100, 250, 400], count) + rng.normal(0, 15, count)
    reach = rng.uniform(15, 130, (2, count))
    inside = ((y - about[:, None]) / reach[0][:, None]) ** 2 + ((x - across[:, None]) / reach[1][:, None]) ** 2 < 1
    return np.ascontiguousarray(inside[:, nearest])


def pixel_labels(masks: np.ndarray, peaks: Peaks) -> tuple[np.ndarray, np.ndarray]:
    """METHOD section 3 on pictures, peak by peak and proposal by proposal."""
    _, height, width = masks.shape
    class_ids, cluster = np.full(len(masks), -1), np.zeros(len(masks), int)
    candidates = np.zeros(len(masks), bool)
    for number, peak in enumerate(np.argsort(peaks.values, kind="stable"), 1):
        label, row, column = peaks.index[peak]
        covering = masks[:, row * height // peaks.grid[0], column * width // peaks.grid[1]]
        if not covering.any():
            continue
        stand_in = masks[covering].mean(0) > 0.7
        for i, mask in enumerate(masks):
            shared = np.logical_and(mask, stand_in).sum()
            overlap = shared / max(np.logical_or(mask, stand_in).sum(), 1)
            if overlap > 0.5:
                class_ids[i], cluster[i] = label + 1, number
            elif overlap > 0:
                candidates[i] = True
    background = candidates & (class_ids == -1)
    class_ids[background], cluster[background] = 0, len(peaks) + 1
    return class_ids, cluster


if __name__ == "__main__":
    sys.exit(run(main))
