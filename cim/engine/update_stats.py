"""What one update of a training run left behind: losses, images, diagnostics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class UpdateStats:
    """What the passes of one update left behind on this process."""

    ids: list[Any] = field(default_factory=list)
    table: list[dict[str, Tensor]] = field(default_factory=list)  # losses of every pass, detached
    images: list[int] = field(default_factory=list)  # images of every pass
    diagnostics: list[dict[str, Any]] = field(default_factory=list)
    used: int = 0
    skipped: int = 0
    wait: float = 0.0

    def finite(self) -> bool:
        values = [value.float() for losses in self.table for value in losses.values()]
        return not values or bool(torch.stack(values).isfinite().all())

    def means(self, reduction: str) -> dict[str, Tensor]:
        """Losses per image."""
        result: dict[str, Tensor] = {}
        for losses, images in zip(self.table, self.images, strict=True):
            for name, value in losses.items():
                part = value * (1 if reduction == "sum" else images) / max(self.used, 1)
                result[name] = result.get(name, 0) + part
        return result

    def describe(self) -> str:
        rows = [" ".join(f"{name}={float(value):.4g}" for name, value in losses.items()) for losses in self.table]
        return f"images {', '.join(map(str, self.ids)) or 'of another process'}; losses {' | '.join(rows)}"
