"""A network, data and step so small that whole training runs fit into a test; also run as a program by some."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cim.engine.fit import FitOptions, Schedule, fit
from cim.engine.held_out import HeldOut


class Numbers:
    """Source of random vectors; every seventh image has nothing to learn from."""

    def __init__(self, length: int = 20, delay: float = 0.0) -> None:
        self.length, self.delay = length, delay

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, rng: np.random.Generator) -> dict | None:
        time.sleep(self.delay)
        if index % 7 == 3:
            return None
        return {"image_id": f"img{index}", "x": torch.from_numpy(rng.normal(index, 1, 6).astype(np.float32))}


class Net(nn.Module):
    """Has dropout (the global generator) and a parameter that only some samples use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
        self.sometimes = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor, extra: bool) -> torch.Tensor:
        out = self.body(x)
        return out * self.sometimes if extra else out


def toy_step(model: nn.Module, samples: list[dict], generator: torch.Generator):
    losses = {"fit": torch.zeros(()), "noise": torch.zeros(())}
    for sample in samples:
        out = model(sample["x"], extra=float(sample["x"][0]) > 5)
        noise = torch.randn(2, generator=generator)
        losses["fit"] = losses["fit"] + (out - 1).square().sum()
        losses["noise"] = losses["noise"] + 0.1 * (out * noise).sum().abs()
    return losses, {"seeds": torch.tensor(float(len(samples))), "what": "not a number"}


def toy_model() -> Net:
    torch.manual_seed(5)
    return Net()


def toy_fit(run_dir: Path, *, model: Net | None = None, source=None, step=toy_step, schedule=None, on_update=None,
            meta: dict | None = None, held_out: HeldOut | None = None, **options) -> Path:  # fmt: skip
    model = toy_model() if model is None else model
    settings = {"workers": 0, "checkpoint_every": 5, "log_every": 3, **options}
    return fit(
        model,
        Numbers() if source is None else source,
        step,
        param_groups=[{"params": list(model.parameters()), "lr": 0.002, "momentum": 0.9, "weight_decay": 1e-3}],
        schedule=schedule or Schedule(4, 24, steps=(12, 18), warmup_updates=6),
        options=FitOptions(**settings),
        run_dir=run_dir,
        device="cpu",
        meta=meta or {"kind": "toy", "classes": ["a"], "config": {"lr": 0.002}},
        on_update=on_update,
        held_out=held_out,
    )


if __name__ == "__main__":  # toys.py RUN_DIR DELAY WORKERS
    torch.set_num_threads(1)
    toy_fit(Path(sys.argv[1]), source=Numbers(delay=float(sys.argv[2])), workers=int(sys.argv[3]))
