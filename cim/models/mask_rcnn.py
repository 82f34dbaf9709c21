"""Mask R-CNN out of torchvision's parts, on our trunks: the refinement that pseudo labels are made for."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.onnx.operators import shape_as_tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, project_masks_on_boxes
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_area
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from cim.models.backbones import Backbone, build_backbone

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Build:
    """Sizes of a Mask R-CNN.

    Attributes:
        trunk: name for ``build_backbone``.
        taps: its layers that feed the pyramid, finest first, by name inside the trunk, with their channels.
        channels: of the pyramid and of the mask head.
        anchors: side of the anchors on every level (the taps and one coarser), pixels.
        hidden: width of the box head.
        mask_layers: convolutions of the mask head.
        regions: regions per image that the second stage is trained on.
        before, after: best proposals per level before NMS, and per image after it.
    """

    trunk: str
    taps: tuple[tuple[str, int], ...]
    channels: int
    anchors: tuple[int, ...]
    hidden: int
    mask_layers: int
    regions: int
    before: int
    after: int


BUILDS = {
    "resnet50_fpn": Build(
        "resnet50_c5",
        (("layer1", 256), ("layer2", 512), ("layer3", 1024), ("layer4", 2048)),
        channels=256,
        anchors=(32, 64, 128, 256, 512),
        hidden=1024,
        mask_layers=4,
        regions=512,
        before=2000,
        after=1000,
    ),
    "mobilenet_fpn": Build(
        "mobilenet_v2",
        (("features.6", 32), ("features.13", 96), ("features.18", 1280)),
        channels=128,
        anchors=(32, 64, 128, 256),
        hidden=512,
        mask_layers=2,
        regions=96,
        before=500,
        after=300,
    ),
}


def build_mask_rcnn(
    name: str, num_classes: int, weights: str | Path | None, min_side: int, max_side: int
) -> GeneralizedRCNN:
    """A Mask R-CNN for C = ``num_classes`` classes (0 is background); trunk norms and early layers stay frozen.

    In train mode images are taken as they come (already resized); in eval mode it resizes them itself, and gives boxes
    in the frame of the photo and masks float [n, 1, 28, 28] in that of their boxes (:class:`Resize`).

    Args:
        name: of :data:`BUILDS`.
        weights: a file for the trunk; None: the library's own ImageNet weights; "none": random.
        min_side, max_side: of the images, pixels.

    Raises:
        CimError: weights that do not fit or cannot be had.
    """
    build = BUILDS[name]
    backbone = Pyramid(build_backbone(build.trunk, weights), build.taps, build.channels)
    levels = [str(k) for k in range(len(build.taps))]
    anchors = AnchorGenerator(tuple((side,) for side in build.anchors), ((0.5, 1.0, 2.0),) * len(build.anchors))
    rpn = TolerantRPN(
        anchors,
        RPNHead(build.channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": build.before, "testing": max(build.before // 2, 300)},
        post_nms_top_n={"training": build.after, "testing": max(build.after // 2, 300)},
        nms_thresh=0.7,
    )
    heads = TolerantRoIHeads(
        MultiScaleRoIAlign(levels, 7, 2),
        TwoMLPHead(build.channels * 49, build.hidden),
        FastRCNNPredictor(build.hidden, num_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=build.regions,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
        mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2),
        mask_head=MaskRCNNHeads(build.channels, (build.channels,) * build.mask_layers, 1),
        mask_predictor=MaskRCNNPredictor(build.channels, build.channels, num_classes + 1),
    )
    resize = Resize(min_side, max_side, MEAN, STD, _skip_resize=True)  # skipped in train mode only
    return GeneralizedRCNN(backbone, rpn, heads, resize)


class Resize(GeneralizedRCNNTransform):
    """Torchvision's, but masks stay as small as the network makes them: pasting a hundred of them into a photo takes a
    float for each of its pixels, a hundred times (``cim.mask_rcnn.pixels.pasted`` does without)."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Torchvision's; traced for ONNX it computes sizes in float32, which for 375 * (400 / 375) gives 399."""
        if not torch.onnx.is_in_onnx_export():
            return super().resize(image, target)
        size = shape_as_tensor(image)[-2:].double()
        shortest_longest = torch.cat([size.min().reshape(1), size.max().reshape(1)])
        limits = torch.tensor([self.min_size[-1], self.max_size]).double()  # a vector: numbers alone become float32
        height, width = (size * (limits / shortest_longest).min()).floor().long()
        return functional.interpolate(image[None], size=(height, width), mode="bilinear")[0], target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes in the frames of the photos."""
        if not self.training:
            for found, seen, original in zip(result, image_shapes, original_image_sizes, strict=True):
                found["boxes"] = resize_boxes(found["boxes"], seen, original)
        return result


class DeployedMaskRCNN(nn.Module):
    """The trained network with plain tensors at both ends, to be traced for other runtimes."""

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, photo: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """uint8 [H, W, 3], RGB -> boxes [n, 4] in its pixels, class_ids [n] from 0, scores [n], masks [n, 28, 28]."""
        (found,) = self.model([photo.permute(2, 0, 1).float() / 255])
        return found["boxes"], found["labels"] - 1, found["scores"], found["masks"][:, 0]


class Pyramid(nn.Module):
    """A trunk tapped at several depths, a feature pyramid on top; the coarsest level is pooled once more.

    Attributes:
        out_channels: of every level.
    """

    def __init__(self, trunk: Backbone, taps: tuple[tuple[str, int], ...], channels: int) -> None:
        super().__init__()
        self.trunk, self.out_channels = trunk, channels
        self._taps = [name for name, _ in taps]
        self.fpn = FeaturePyramidNetwork([width for _, width in taps], channels, LastLevelMaxPool())

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """float [B, 3, h, w] -> levels "0", "1", ... and "pool", float [B, D, ., .], finest first."""
        levels: OrderedDict[str, Tensor] = OrderedDict()
        images = images.contiguous(memory_format=torch.channels_last)  # a quarter faster on CPUs
        for name, layer in self._layers():
            images = layer(images)
            if name in self._taps:
                levels[str(len(levels))] = images
        return self.fpn(levels)

    def _layers(self) -> list[tuple[str, nn.Module]]:
        """Layers of the trunk in their order, with names; one level of nesting is opened."""
        layers = []
        for name, part in self.trunk.body.named_children():
            inner = [(f"{name}.{k}", layer) for k, layer in part.named_children()] if name == "features" else []
            layers += inner or [(name, part)]
        return layers


UNKNOWN = -1  # label of an area where nothing is known: torchvision's samplers take no region that has it
_INSIDE = 0.5  # share of a box that lies in such an area, from which it is no background


def inside(boxes: Tensor, areas: Tensor) -> Tensor:
    """Which boxes, float [n, 4], lie mostly in one of the areas, float [m, 4] (COCO's measure for crowds): bool [n]."""
    if not len(areas):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    low = torch.maximum(boxes[:, None, :2], areas[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], areas[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2).amax(1)
    return shared >= _INSIDE * box_area(boxes).clamp(min=1e-6)


class TolerantRPN(RegionProposalNetwork):
    """Torchvision's first stage; anchors inside areas labelled :data:`UNKNOWN` are never background."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As in torchvision; ``targets`` also hold ``labels``."""
        known = [{"boxes": target["boxes"][target["labels"] != UNKNOWN]} for target in targets]
        labels, matched = super().assign_targets_to_anchors(anchors, known)
        for own, found, target in zip(anchors, labels, targets, strict=True):
            areas = target["boxes"][target["labels"] == UNKNOWN]
            found[(found == 0) & inside(own, areas)] = UNKNOWN
        return labels, matched


class TolerantRoIHeads(RoIHeads):
    """Torchvision's second stage, on labels that are not all sure.

    Regions inside areas labelled :data:`UNKNOWN` are never background (drop loss, CutLER, CVPR 2023). Where targets
    carry ``weights`` (float [n], per instance), a region's box, class and mask loss is multiplied by the weight of the
    instance it belongs to. Background regions weigh 1.
    """

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As in torchvision."""
        # unknown areas are moved out of sight, so that no region takes one for its best match; indices stay
        apart = [
            torch.where((found == UNKNOWN)[:, None], -1.0, box) for box, found in zip(gt_boxes, gt_labels, strict=True)
        ]
        matched, labels = super().assign_targets_to_proposals(proposals, apart, gt_labels)
        for own, found, boxes, given in zip(proposals, labels, gt_boxes, gt_labels, strict=True):
            found[(found == 0) & inside(own, boxes[given == UNKNOWN])] = UNKNOWN
        return matched, labels

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As in torchvision; losses or detections."""
        if not self.training or targets is None or "weights" not in targets[0]:
            return super().forward(features, proposals, image_shapes, targets)
        proposals, matched, labels, offsets = self.select_training_samples(proposals, targets)
        weights = [target["weights"][m] for target, m in zip(targets, matched, strict=True)]
        scores, regression = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        classify, box = weighted_box_losses(scores, regression, labels, offsets, weights)
        fore = [torch.where(class_ids > 0)[0] for class_ids in labels]
        boxes = [p[i] for p, i in zip(proposals, fore, strict=True)]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
        mask = weighted_mask_loss(
            logits,
            boxes,
            [target["masks"] for target in targets],
            [k[i] for k, i in zip(labels, fore, strict=True)],
            [m[i] for m, i in zip(matched, fore, strict=True)],
            [w[i] for w, i in zip(weights, fore, strict=True)],
        )
        return [], {"loss_classifier": classify, "loss_box_reg": box, "loss_mask": mask}


def weighted_box_losses(
    scores: Tensor, regression: Tensor, labels: list[Tensor], offsets: list[Tensor], weights: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Class and box loss of the sampled regions; with weights of 1 these are torchvision's.

    Args:
        scores: float [R, C+1], logits; regression: float [R, 4 (C+1)].
        labels: per image int64 [r], 0 background; offsets: float [r, 4]; weights: float [r].
    """
    class_ids, target = torch.cat(labels), torch.cat(offsets)
    fore = torch.where(class_ids > 0)[0]
    weight = torch.cat(weights).to(scores.dtype)
    weight = torch.where(class_ids > 0, weight, torch.ones_like(weight))
    classify = (weight * functional.cross_entropy(scores, class_ids, reduction="none")).sum() / max(
        class_ids.numel(), 1
    )
    chosen = regression.reshape(len(class_ids), -1, 4)[fore, class_ids[fore]]
    distance = functional.smooth_l1_loss(chosen, target[fore], beta=1 / 9, reduction="none").sum(1)
    return classify, (weight[fore] * distance).sum() / max(class_ids.numel(), 1)


def weighted_mask_loss(
    logits: Tensor,
    boxes: list[Tensor],
    masks: list[Tensor],
    labels: list[Tensor],
    matched: list[Tensor],
    weights: list[Tensor],
) -> Tensor:
    """Mask loss of the foreground regions; with weights of 1 it is torchvision's.

    Args:
        logits: float [F, C+1, s, s].
        boxes: per image float [f, 4]; masks: uint8 [n, h, w]; labels, matched: int64 [f]; weights: float [f].
    """
    class_ids = torch.cat(labels)
    if not len(class_ids):
        return logits.sum() * 0
    side = logits.shape[-1]
    wanted = torch.cat([project_masks_on_boxes(m, b, i, side) for m, b, i in zip(masks, boxes, matched, strict=True)])
    own = logits[torch.arange(len(class_ids), device=class_ids.device), class_ids]
    each = functional.binary_cross_entropy_with_logits(own, wanted, reduction="none").mean((1, 2))
    return (torch.cat(weights).to(each.dtype) * each).sum() / len(class_ids)
