"""Everything that wants a GPU, by one command: what runs, how fast, and whether it gives the same labels as a CPU.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --toy                    # minutes on a CPU: only to see that it works
    python benchmarks/gpu.py --parts mining training  # some of it

Prints Markdown tables for docs/PERFORMANCE.md. Trunks are random, data are synthetic, nothing is downloaded. What fails
is told in its place, and the rest goes on; the exit code is 1 then. (Not called cuda.py: PyTorch imports a `cuda`.)
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch
import torchvision

from cim.config.device import resolve_device
from cim.config.loading import load_config
from cim.core.regions import Overlaps
from cim.engine.run_logger import memory_mb
from cim.mask_rcnn.train import refine_step
from cim.mining.miners import CIMMiner
from cim.models.mask_rcnn import build_mask_rcnn

sys.path.append(str(Path(__file__).parent))  # its neighbours, however it was started
from mining import scene
from training import make_photos, make_source, measure_step, measure_wait

CONFIGS = ("vgg16_voc", "resnet50_voc", "hrnet48_voc")
REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "expected"


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def environment(args: argparse.Namespace, device: torch.device) -> None:
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.processor()})"
    print(
        f"{what}; torch {torch.__version__}, torchvision {torchvision.__version__}, CUDA {torch.version.cuda}, ", end=""
    )
    print(f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")


def suite(args: argparse.Namespace, device: torch.device) -> None:
    """The tests, where CUDA is seen by those that use it."""
    tests = ["tests/test_mining.py"] if args.toy else ["tests"]
    began = time.monotonic()
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", "addopts=", "--no-header", "-q", *tests],
        cwd=root,
        capture_output=True,
        text=True,
    )
    print(f"tests: {done.stdout.strip().splitlines()[-1]} ({time.monotonic() - began:.0f} s)")
    if done.returncode:
        raise RuntimeError("\n".join(line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))))


def mining(args: argparse.Namespace, device: torch.device) -> None:
    """All three branches; on a GPU whatever would wait for it is an error."""
    print("| mining, two classes | N | ms per image | waits for the device |\n|---|--:|--:|---|")
    for count in (50, 100) if args.toy else (200, 1000, 2000):
        arrays = scene(count)
        s, d, iou, containment = (torch.from_numpy(a).to(device) for a in (*arrays[:2], *arrays[3]))
        tags, over = torch.from_numpy(arrays[2]), Overlaps(iou, containment)
        generator = torch.Generator(device).manual_seed(0)
        times = []
        for _ in range(3 if args.toy else 20):
            wait(device)
            began = time.perf_counter()
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                for branch in range(3):
                    CIMMiner()(s, d, tags, over, branch, generator)
            finally:
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            wait(device)
            times.append(time.perf_counter() - began)
        told = "never" if device.type == "cuda" else "not a question on a CPU"
        print(f"| {device.type} | {count} | {1000 * float(np.median(times)):.1f} | {told} |")


def labels(args: argparse.Namespace, device: torch.device) -> None:
    """Pseudo labels of the reference photos (drawn scenes without them), here and on the CPU."""
    for name, s, d, tags, over in reference_photos() if REFERENCE.is_dir() else drawn_scenes():
        for branch in range(3):
            found = []
            for at in ("cpu", device):
                moved = Overlaps(*(torch.from_numpy(a).to(at) for a in over))
                scores = (torch.from_numpy(np.ascontiguousarray(a)).to(at) for a in (s, d))
                found.append(CIMMiner(anti_noise=False)(*scores, torch.from_numpy(tags), moved, branch))
            same = {
                k: torch.equal(getattr(found[0], k), getattr(found[1], k).cpu()) for k in ("class_ids", "integrity")
            }
            far = float((found[0].weight - found[1].weight.cpu()).abs().max())
            print(
                f"{name}, branch {branch}: classes and integrity {'equal' if all(same.values()) else 'DIFFER'}, ",
                end="",
            )
            print(f"weights within {far:.1g}")
            if not all(same.values()):
                raise RuntimeError(f"labels differ: {name}, branch {branch}")


def reference_photos():
    """The published program's scores of two photos."""
    with np.load(REFERENCE / "mining_and_losses.npz") as f, np.load(REFERENCE / "proposals.npz") as g:
        for image in ("2007_000100", "2007_000104"):
            over = [g[f"{image}.{key}"].astype(np.float32) for key in ("iou", "containment")]
            yield image, f[f"{image}.cls"][:, 1:], f[f"{image}.det"][:, 1:], f[f"{image}.labels"][0], over


def drawn_scenes():
    for seed in range(4):
        s, d, tags, over = scene(300, seed)
        yield f"drawn scene {seed}", s, d, tags, list(over)


def training(args: argparse.Namespace, device: torch.device) -> None:
    """CIM's step by parts at published sizes, and the share of time that the real engine waits for data."""
    names = ["folder_mobilenet"] if args.toy else CONFIGS
    configs = [load_config(name, ["model.weights=none"]) for name in names]
    precisions = ["fp32"] if device.type == "cpu" else ["fp32", "bf16"]
    parts = "trunk | RoIAlign | head | mining + losses | backward"
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder), 20 if args.toy else 1000)
        sources = [make_source(Path(folder), config) for config in configs]
        print(f"| ms per image | {parts} | all | images/s | of floor | MiB |\n|---|" + "--:|" * 9)
        for config, source in zip(configs, sources, strict=True):
            for precision in precisions:
                for side in [64] if args.toy else [min(config.train.sides), max(config.train.sides)]:
                    steps = 1 if args.toy else 5
                    print(measure_step(config, source, side, device, precision, steps), flush=True)
        print("\n| real engine | waits for data | images/s |\n|---|--:|--:|")
        for config, source in zip(configs, sources, strict=True):
            for precision in precisions:
                print(measure_wait(config, source, device, precision, 1 if args.toy else 4), flush=True)


def mask_rcnn(args: argparse.Namespace, device: torch.device) -> None:
    """Mask R-CNN: training steps of two images with five instances each, and detection."""
    name, short, long = ("mobilenet_fpn", 64, 96) if args.toy else ("resnet50_fpn", 800, 1333)
    print("| Mask R-CNN | precision | training, images/s | detection, images/s | MiB |\n|---|---|--:|--:|--:|")
    for precision in ["fp32"] if device.type == "cpu" else ["fp32", "bf16"]:
        torch.manual_seed(0)
        model = build_mask_rcnn(name, 20, "none", short, long).to(device).train()
        samples = [labelled(short, long, device, seed) for seed in range(2)]
        kind = torch.bfloat16 if precision == "bf16" else None
        rates = []
        for learn in (True, False):
            model.train(learn)
            times = []
            for _ in range(2 if args.toy else 10):
                wait(device)
                began = time.perf_counter()
                with torch.autocast(device.type, dtype=kind, enabled=kind is not None), torch.set_grad_enabled(learn):
                    if learn:
                        losses, _ = refine_step(model, samples, torch.Generator())
                    else:
                        model([sample["image"] for sample in samples])
                if learn:
                    model.zero_grad(set_to_none=True)
                    sum(losses.values()).backward()
                wait(device)
                times.append(time.perf_counter() - began)
            rates.append(len(samples) / float(np.median(times)))
        print(
            f"| {name}, {short} to {long} | {precision} | {rates[0]:.2f} | {rates[1]:.2f} | {memory_mb(device):.0f} |"
        )


def labelled(height: int, width: int, device: torch.device, seed: int) -> dict:
    """Noise with five boxes as instances."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.6, (5, 2)) * (width, height)
    boxes = np.concatenate([low, low + rng.uniform(0.15, 0.4, (5, 2)) * (width, height)], 1).round().astype(np.float32)
    masks = np.zeros((5, height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = 1
    target = {"boxes": torch.from_numpy(boxes), "labels": torch.arange(1, 6), "masks": torch.from_numpy(masks)}
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    return {"image": image.to(device), "target": {key: value.to(device) for key, value in target.items()}}


PARTS = {part.__name__: part for part in (environment, mining, labels, training, mask_rcnn, suite)}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", default="auto", help="auto: CUDA when present")
    parser.add_argument("--toy", action="store_true", help="tiny sizes")
    return parser


def main() -> int:
    args = get_parser().parse_args()
    device, failed = resolve_device(args.device), []
    for name in args.parts:
        print(f"\n## {name.replace('_', ' ')}\n", flush=True)
        try:
            PARTS[name](args, device)
        except Exception:  # told in its place; what else there is to measure is worth the same
            failed.append(name)
            print(f"FAILED\n\n```\n{traceback.format_exc()}```", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
