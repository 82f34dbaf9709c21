"""The CIM network: trunk, head, predictor (METHOD section 4)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cim.core.types import RoiScores, Sample
from cim.models.backbones import Backbone
from cim.models.mask_fuse import MaskFuse
from cim.models.predictor import Predictor
from cim.models.region_pool import RegionPool


class CIMNet(nn.Module):
    """Scores of all proposals of one image.

    ``forward`` is the three steps in a row; inference may keep the result of one and repeat the next.
    """

    def __init__(self, backbone: Backbone, head: MaskFuse | RegionPool, predictor: Predictor) -> None:
        super().__init__()
        self.backbone, self.roi_head, self.predictor = backbone, head, predictor

    def forward(self, sample: Sample) -> RoiScores:
        """The trunk runs unless the sample brings its features along, the head too unless it brings what that made."""
        if sample.pooled is not None:
            assert isinstance(self.roi_head, RegionPool)  # no other head pools
            return self.predict(self.roi_head.from_pooled(sample.pooled.float()))
        return self.predict(self.head(self.features_of(sample), sample))

    def features_of(self, sample: Sample) -> Tensor:
        """Feature map [1, D, h', w'] of a sample."""
        return self.features(sample.image) if sample.features is None else sample.features[None].float()

    def features(self, image: Tensor) -> Tensor:
        """float [3, h, w], normalised -> feature map [1, D, h / stride, w / stride]."""
        return self.backbone(image[None])

    def head(self, features: Tensor, sample: Sample) -> Tensor:
        """Proposal features [N, hidden]."""
        return self.roi_head(features, sample)

    def predict(self, roi_features: Tensor) -> RoiScores:
        """Scores of all branches."""
        return self.predictor(roi_features)


def param_groups(
    model: nn.Module, *, lr: float, bias_lr_factor: float, momentum: float, weight_decay: float
) -> list[dict[str, Any]]:
    """SGD groups of what is trained: weights, and biases at their own rate without decay (METHOD section 7)."""
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, value in model.named_parameters():
        if value.requires_grad:
            (biases if name.rpartition(".")[2] == "bias" else weights).append(value)
    groups: list[dict[str, Any]] = [
        {"params": weights, "lr": lr, "momentum": momentum, "weight_decay": weight_decay},
        {"params": biases, "lr": lr * bias_lr_factor, "momentum": momentum, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
