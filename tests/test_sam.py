"""SAM proposals through transformers' own code, with a model small and random enough to make here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cim.core.errors import CimError
from cim.proposals.sam import SamOptions, SamProposer, _regions

LOOSE = SamOptions(iou_threshold=-1, stability_threshold=-1, min_area=0, max_area=1, max_proposals=5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers", reason="SAM proposals are not tested: pip install 'cim[sam]'")
    folder = tmp_path_factory.mktemp("sam")
    torch.manual_seed(0)
    vision = transformers.SamVisionConfig(
        hidden_size=16,
        output_channels=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        mlp_dim=16,
        window_size=2,
        global_attn_indexes=[0],
        num_pos_feats=8,
    )
    prompt = transformers.SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4)
    decoder = transformers.SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16
    )
    config = transformers.SamConfig(
        vision_config=vision.to_dict(), prompt_encoder_config=prompt.to_dict(), mask_decoder_config=decoder.to_dict()
    )
    transformers.SamModel(config).save_pretrained(folder)
    images = transformers.SamImageProcessor(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    transformers.SamProcessor(images).save_pretrained(folder)
    return folder


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)


def test_masks_come_in_the_photos_frame_best_first(checkpoint: Path) -> None:
    proposer = SamProposer(checkpoint, LOOSE)
    regions = proposer(photo(50, 70))
    assert 1 <= len(regions) <= 5 and regions.size == (50, 70)
    assert regions.areas.all() and (np.diff(regions.scores) <= 0).all()
    wide = proposer(photo(40, 3000))  # is shrunk for the model
    assert len(wide) and wide.size == (40, 3000)


def test_no_mask_good_enough(checkpoint: Path) -> None:
    regions = SamProposer(checkpoint, SamOptions(iou_threshold=2))(photo(50, 70))
    assert len(regions) == 0 and regions.size == (50, 70)


def test_limits_and_order() -> None:
    masks = np.zeros((4, 10, 10), bool)
    for row, width in enumerate((1, 10, 4, 5)):
        masks[row, :, :width] = True
    found = _regions(list(masks), np.array([0.1, 0.9, 0.2, 0.3], np.float32), (10, 10), SamOptions(min_area=0.2))
    np.testing.assert_array_equal(found.masks(), masks[[3, 2]])
    assert found.scores.tolist() == pytest.approx([0.3, 0.2])
    assert len(_regions(list(masks), np.zeros(4, np.float32), (10, 10), SamOptions(max_proposals=2))) == 2


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CimError, match=r"pip install 'cim\[sam\]'") as error:
        SamProposer("facebook/sam-vit-base")
    assert "\n" not in str(error.value)


def test_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="SAM proposals are not tested: pip install 'cim[sam]'")
    with pytest.raises(CimError, match="cannot load the SAM checkpoint") as error:
        SamProposer(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(CimError, match="needs a checkpoint"):
        SamProposer(None)
