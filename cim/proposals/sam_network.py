"""Segment Anything networks of Hugging Face transformers: a photo is looked at once, then points are answered.

The library knows which class belongs to a checkpoint: SAM, HQ-SAM and SAM 2, also one saved for videos, and of SAM 3
the tracker, which is the part that points prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cim.core.errors import CimError
from cim.models.downloads import check_hub, refuse_offline

INSTALL = "pip install 'cim[sam]'"
_FIX = f"a hub name such as facebook/sam-vit-base, or a folder; newest models: {INSTALL} --upgrade"


@dataclass(frozen=True)
class Looked:
    """What the network keeps of a photo.

    Attributes:
        embeddings: arguments of the network that stand for the photo.
        size: (H, W) of the photo.
        frame: (h, w) of the photo as the network saw it; points are given in it.
        sizes: arguments that turn masks back into the photo's frame.
    """

    embeddings: dict[str, Any]
    size: tuple[int, int]
    frame: tuple[int, int]
    sizes: dict[str, Any]


@dataclass(frozen=True, eq=False)
class SamNetwork:
    """A network and what prepares its photos, both of transformers."""

    model: Any
    images: Any
    device: str

    @torch.inference_mode()
    def look(self, photo: np.ndarray) -> Looked:
        """The photo, uint8 [H, W, 3], through the large part of the network: once, whatever is asked about it."""
        size = photo.shape[0], photo.shape[1]
        prepared = self.images(images=Image.fromarray(photo), return_tensors="pt")
        pixels = prepared["pixel_values"].to(self.device, torch.float32)
        found = self.model.get_image_embeddings(pixels)
        several = isinstance(found, tuple)  # HQ-SAM's decoder wants what earlier layers found as well
        embeddings = {"image_embeddings": found[0] if several else found}
        if several:
            embeddings["intermediate_embeddings"] = found[1]
        sizes, frame = {"original_sizes": [list(size)]}, (pixels.shape[2], pixels.shape[3])
        if self.images.size.get("longest_edge"):  # SAM and HQ-SAM pad the photo to the square, the others squash it
            height, width = prepared["reshaped_input_sizes"][0].tolist()
            frame = height, width
            sizes["reshaped_input_sizes"] = [list(frame)]
        return Looked(embeddings, size, frame, sizes)

    @torch.inference_mode()
    def answer(self, looked: Looked, points: np.ndarray) -> tuple[Tensor, Tensor]:
        """Three masks for each point, decoded together.

        Args:
            points: float [P, 2], x and y as fractions of the photo.

        Returns:
            logits [3 P, h, w], small, in the network's own frame, and how good it thinks each is [3 P].
        """
        height, width = looked.frame
        places = torch.from_numpy(points * np.array([width, height])).to(self.device, torch.float32)[None, :, None]
        labels = torch.ones(places.shape[:3], dtype=torch.int64, device=self.device)  # each on something
        found = self.model(**looked.embeddings, input_points=places, input_labels=labels, multimask_output=True)
        return found.pred_masks.flatten(0, 2), found.iou_scores.flatten()

    @torch.inference_mode()
    def enlarge(self, looked: Looked, logits: Tensor) -> Tensor:
        """Logits [n, h, w] in the photo's frame: [n, H, W]."""
        return self.images.post_process_masks(logits[None, :, None], **looked.sizes, binarize=False)[0][:, 0]


def load_sam(checkpoint: str, device: str) -> SamNetwork:
    """The network of a checkpoint, in eval mode.

    Args:
        checkpoint: name on the Hugging Face hub, or a folder written by ``save_pretrained``.

    Raises:
        CimError: transformers is not installed; the checkpoint cannot be had, is of another kind, or lacks weights.
    """
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForMaskGeneration
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING_NAMES as KINDS
    except ImportError:
        raise CimError("SAM proposals need the package transformers", fix=INSTALL) from None
    local = Path(checkpoint).is_dir()
    if not local:
        refuse_offline(f"the SAM checkpoint {checkpoint}", "give a folder that save_pretrained wrote")
    try:
        with _quiet():
            kind = AutoConfig.from_pretrained(checkpoint).model_type
            if kind not in KINDS:
                expected = ", ".join(sorted(KINDS))
                raise CimError("not a SAM checkpoint", path=checkpoint, expected=expected, found=kind, fix=_FIX)
            model, info = AutoModelForMaskGeneration.from_pretrained(checkpoint, output_loading_info=True)
            images = AutoImageProcessor.from_pretrained(checkpoint)
        if not local:
            check_hub(checkpoint)
    except CimError:
        raise
    except Exception as error:  # hub, network, json, key and value errors: all mean that it cannot be had
        reason = " ".join(str(error).split())[:160]
        raise CimError("cannot load the SAM checkpoint", path=checkpoint, found=reason, fix=_FIX) from error
    if missing := sorted(info["missing_keys"]):  # the library makes them up, at random
        found = f"{len(missing)} are not there, e.g. {missing[0]}"
        raise CimError("weights are missing in the SAM checkpoint", path=checkpoint, found=found, fix=_FIX)
    return SamNetwork(model.float().eval().to(device), images, device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own bars and tables: what matters is said in one line."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
