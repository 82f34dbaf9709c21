"""SAM proposals through transformers' own code, with models of every family small and random enough to make here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sam import save_tiny

from cim.core.errors import CimError
from cim.proposals import sam, sam_network
from cim.proposals.sam import SamOptions, SamProposer, grid_points

LOOSE = SamOptions(
    grid=3, iou_threshold=-np.inf, stability_threshold=-1, box_iou=1, min_area=0, max_area=1, points_per_batch=4
)
PROCESSORS = {  # of transformers, as its documentation uses them
    "sam": "SamProcessor",
    "sam_hq": "SamHQProcessor",
    "sam2": "Sam2Processor",
    "sam2_video": "Sam2Processor",
    "sam3_tracker": "Sam3TrackerProcessor",
    "sam3_video": "Sam3TrackerProcessor",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoint folder of a family, made once."""
    made: dict[str, Path] = {}

    def checkpoint(family: str) -> Path:
        transformers = pytest.importorskip("transformers", reason="SAM is not tested: pip install 'cim[sam]'")
        if family not in made:
            try:
                made[family] = save_tiny(family, tmp_path_factory.mktemp(family), spread=3)
            except (AttributeError, ImportError) as error:
                pytest.skip(f"{family} is not tested: transformers {transformers.__version__} lacks it ({error})")
        return made[family]

    return checkpoint


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)


def documented(checkpoint: Path, processor: str, image: np.ndarray, points: np.ndarray) -> list[bytes]:
    """Masks of points in pixels, each asked alone and with the photo, as transformers' documentation does it."""
    import transformers
    from transformers import AutoImageProcessor

    processor = getattr(transformers, processor)(AutoImageProcessor.from_pretrained(checkpoint))
    model: Any = sam_network.load_sam(str(checkpoint), "cpu").model
    found = []
    for point in points.tolist():
        inputs = processor(images=Image.fromarray(image), input_points=[[[point]]], return_tensors="pt")
        sizes = {name: inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs}
        inputs["input_points"] = inputs["input_points"].float()
        with torch.inference_mode():
            masks = model(**inputs).pred_masks
        found += [mask.numpy().tobytes() for mask in processor.post_process_masks(masks, **sizes)[0][0] if mask.any()]
    return sorted(found)


@pytest.mark.parametrize("family", PROCESSORS)
def test_every_family_answers_points_as_its_own_processor_does(tiny, family) -> None:
    checkpoint, image = tiny(family), photo(50, 70)
    mine = np.array([[0.9, 0.1], [0.25, 0.75]])
    regions = SamProposer(checkpoint, LOOSE)(image, mine)
    places = np.concatenate([mine, grid_points(3)]) * [70, 50]
    expected = documented(checkpoint, PROCESSORS[family], image, places)
    assert sorted(mask.tobytes() for mask in regions.masks()) == expected and len(set(expected)) > 3
    assert (np.diff(regions.scores) <= 0).all() and len(regions) == len(expected)


@pytest.mark.parametrize("box_iou", [0.95, 0.99])
def test_a_grid_gives_what_the_pipeline_of_transformers_gives(tiny, box_iou) -> None:
    checkpoint, image = tiny("sam"), photo(50, 70)
    from transformers import pipeline

    options = SamOptions(iou_threshold=0.7, stability_threshold=0.2, box_iou=box_iou, min_area=0, max_area=1)
    thresholds = {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.2, "crops_nms_thresh": box_iou}
    found = pipeline("mask-generation", model=str(checkpoint))(Image.fromarray(image), **thresholds)
    regions = SamProposer(checkpoint, options)(image)
    np.testing.assert_array_equal(regions.masks(), np.array([np.asarray(mask) for mask in found["masks"]]))
    np.testing.assert_allclose(regions.scores, np.array(found["scores"]), rtol=1e-5)
    assert len(regions) > 1


def test_the_photo_is_looked_at_once_however_many_points_there_are(tiny, monkeypatch) -> None:
    looks, answers = [], []
    look, answer = sam_network.SamNetwork.look, sam_network.SamNetwork.answer
    monkeypatch.setattr(sam_network.SamNetwork, "look", lambda net, photo: looks.append(1) or look(net, photo))
    monkeypatch.setattr(
        sam_network.SamNetwork,
        "answer",
        lambda net, looked, points: answers.append(len(points)) or answer(net, looked, points),
    )
    SamProposer(tiny("sam2"), LOOSE)(photo(50, 70), np.full((2, 2), 0.5))
    assert looks == [1] and answers == [4, 4, 3]


def test_batches_do_not_change_what_is_found(tiny) -> None:
    one, many = (
        SamProposer(tiny("sam2"), SamOptions(**{**vars(LOOSE), "points_per_batch": size}))(photo(50, 70))
        for size in (1, 9)
    )
    assert len(one) == len(many) and (one.masks() != many.masks()).mean() < 1e-3


def test_masks_come_in_the_photos_frame_best_first(tiny) -> None:
    proposer = SamProposer(tiny("sam"), SamOptions(**{**vars(LOOSE), "max_proposals": 5}))
    regions = proposer(photo(50, 70))
    assert len(regions) == 5 and regions.size == (50, 70)
    assert regions.areas.all() and (np.diff(regions.scores) <= 0).all()
    wide = proposer(photo(40, 3000))  # is shrunk for the model
    assert len(wide) and wide.size == (40, 3000)


def test_no_mask_good_enough_and_no_point_at_all(tiny) -> None:
    for options in (SamOptions(grid=2, iou_threshold=np.inf), SamOptions(grid=0)):
        regions = SamProposer(tiny("sam"), options)(photo(50, 70))
        assert len(regions) == 0 and regions.size == (50, 70)


def test_a_grid_of_points() -> None:
    assert grid_points(0).shape == (0, 2)
    np.testing.assert_allclose(grid_points(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])


def test_unstable_small_and_large_masks_fall_away() -> None:
    logits = torch.full((5, 10, 10), -9.0)
    for row, width in enumerate((1, 10, 4, 5)):
        logits[row, :, :width] = 9
    logits[4, :, :4] = 0.5  # another threshold would leave nothing of it
    scores = torch.tensor([0.1, 0.9, 0.2, 0.3, 0.4])
    bits, boxes, kept = sam._sound(logits, scores, SamOptions(min_area=0.2))
    assert kept.tolist() == pytest.approx([0.2, 0.3])
    np.testing.assert_array_equal(np.unpackbits(bits, axis=1, count=100).reshape(-1, 10, 10), (logits > 0)[2:4])
    assert boxes.tolist() == [[0, 0, 3, 9], [0, 0, 4, 9]]


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CimError, match=r"pip install 'cim\[sam\]'") as error:
        SamProposer("facebook/sam-vit-base")
    assert "\n" not in str(error.value)


def test_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="SAM is not tested: pip install 'cim[sam]'")
    with pytest.raises(CimError, match="cannot load the SAM checkpoint") as error:
        SamProposer(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(CimError, match="needs a checkpoint"):
        SamProposer(None)


def test_the_part_of_sam_3_that_texts_prompt_is_told_from_the_one_that_points_prompt(tiny) -> None:
    with pytest.raises(CimError, match=r"not a SAM checkpoint.*sam3_tracker.*found sam3;") as error:
        SamProposer(tiny("sam3"))
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_lacks_weights_is_refused_in_one_line(tiny, tmp_path: Path, capfd) -> None:
    checkpoint = tiny("sam")
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    weights = load_file(checkpoint / "model.safetensors")
    gone = [name for name in weights if name.startswith("mask_decoder.iou_token")]
    save_file({k: v for k, v in weights.items() if k not in gone}, tmp_path / "model.safetensors", {"format": "pt"})
    capfd.readouterr()
    with pytest.raises(CimError, match=r"weights are missing.*1 are not there, e\.g\. mask_decoder\.iou_token"):
        SamProposer(tmp_path)
    assert "".join(capfd.readouterr()) == ""  # the library's own table would come before the one line


def test_offline_takes_folders_and_downloads_nothing(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny("sam")
    monkeypatch.setenv("CIM_OFFLINE", "1")
    assert len(SamProposer(checkpoint, LOOSE)(photo(50, 70)))
    with pytest.raises(CimError, match="CIM_OFFLINE forbids"):
        SamProposer("facebook/sam-vit-base")
