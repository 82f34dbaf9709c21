"""Tiny random models of the Segment Anything families, saved as a checkpoint folder is: built from their configs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIDE = 64  # of the square that the tiny models look at, pixels
WIDTH = 16
_DECODER = {
    "hidden_size": WIDTH,
    "mlp_dim": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
}
_MAPS = [[16, 16], [8, 8], [4, 4]]  # of SAM 2 and 3, fine to coarse


def save_tiny(family: str, folder: Path, seed: int = 0, spread: float = 1.0) -> Path:
    """A checkpoint of ``family`` in ``folder``, which is returned.

    Args:
        family: a key of :data:`FAMILIES`.
        spread: of the random weights; more of it makes masks that differ from each other more.

    Raises:
        AttributeError: the installed transformers does not know the family.
    """
    torch.manual_seed(seed)
    model, images = FAMILIES[family]()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim > 1 and "relative_position" not in name:
                weights.normal_(0, spread / weights[0].numel() ** 0.5)
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    _name_as_the_hub(folder / "model.safetensors")
    return folder


def _name_as_the_hub(weights: Path) -> None:
    """transformers 5.24 writes SAM 3's tracker under twice its prefix, under which it does not find it again."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    twice, once = "tracker_model.tracker_model.", "tracker_model."
    if any(name.startswith(twice) for name in tensors):
        save_file({name.replace(twice, once): tensor for name, tensor in tensors.items()}, weights, {"format": "pt"})


def _sam(name: str = "Sam") -> tuple[Any, Any]:
    import transformers as t

    more = {"vit_dim": 16} if name == "SamHQ" else {}
    vision = getattr(t, f"{name}VisionConfig")(
        hidden_size=16,
        output_channels=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=16,
        mlp_dim=16,
        window_size=2,
        global_attn_indexes=[0],
        num_pos_feats=WIDTH // 2,
    )
    prompt = getattr(t, f"{name}PromptEncoderConfig")(
        hidden_size=WIDTH, image_size=SIDE, patch_size=16, mask_input_channels=4
    )
    decoder = getattr(t, f"{name}MaskDecoderConfig")(**_DECODER, **more)
    config = getattr(t, f"{name}Config")(
        vision_config=vision.to_dict(), prompt_encoder_config=prompt.to_dict(), mask_decoder_config=decoder.to_dict()
    )
    images = t.SamImageProcessor(
        size={"longest_edge": SIDE},
        pad_size={"height": SIDE, "width": SIDE},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    return getattr(t, f"{name}Model")(config), images


def _square(name: str) -> Any:
    import transformers as t

    square = {"height": SIDE, "width": SIDE}
    kind = getattr(t, name) if hasattr(t, name) else getattr(t, f"{name}Fast")  # as version 4 called it
    return kind(size=square, mask_size={"height": 16, "width": 16})


def _sam2_parts(name: str) -> dict[str, Any]:
    import transformers as t

    hiera = t.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 2],
        window_positional_embedding_background_size=[2, 2],
        global_attention_blocks=[3],
    )
    vision = t.Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=_MAPS,
        fpn_hidden_size=WIDTH,
    )
    return {"vision_config": vision, **_prompt_and_decoder(name, 16)}


def _prompt_and_decoder(name: str, patch: int) -> dict[str, Any]:
    import transformers as t

    prompt = {"hidden_size": WIDTH, "image_size": SIDE, "patch_size": patch, "mask_input_channels": 4}
    return {
        "prompt_encoder_config": getattr(t, f"{name}PromptEncoderConfig")(**prompt),
        "mask_decoder_config": getattr(t, f"{name}MaskDecoderConfig")(**_DECODER),
    }


def _sam2() -> tuple[Any, Any]:
    import transformers as t

    return t.Sam2Model(t.Sam2Config(**_sam2_parts("Sam2"))), _square("Sam2ImageProcessor")


def _memory() -> dict[str, Any]:
    return {
        "image_size": SIDE,
        "memory_attention_hidden_size": WIDTH,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 16,
        "memory_attention_rope_feat_sizes": [4, 4],
        "memory_encoder_hidden_size": WIDTH,
        "memory_encoder_output_channels": 8,
        "mask_downsampler_embed_dim": WIDTH,
        "memory_fuser_embed_dim": WIDTH,
        "memory_fuser_intermediate_dim": 16,
        "memory_fuser_num_layers": 1,
    }


def _sam2_video() -> tuple[Any, Any]:
    """What the hub's SAM 2 checkpoints are: they track through videos as well."""
    import transformers as t

    config = t.Sam2VideoConfig(**_sam2_parts("Sam2Video"), **_memory())
    return t.Sam2VideoModel(config), _square("Sam2ImageProcessor")


def _sam3_vision() -> Any:
    import transformers as t

    vit = t.Sam3ViTConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=16,
        window_size=2,
        global_attn_indexes=[0],
        pretrain_image_size=SIDE,
    )
    return t.Sam3VisionConfig(backbone_config=vit, fpn_hidden_size=WIDTH, backbone_feature_sizes=_MAPS)


def _sam3_tracker() -> tuple[Any, Any]:
    import transformers as t

    config = t.Sam3TrackerConfig(vision_config=_sam3_vision(), **_prompt_and_decoder("Sam3Tracker", 16))
    return t.Sam3TrackerModel(config), _square("Sam3ImageProcessor")


def _sam3_config() -> Any:
    import transformers as t

    small = {"hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 16}
    return t.Sam3Config(
        vision_config=_sam3_vision(),
        text_config=t.CLIPTextConfig(
            vocab_size=64, projection_dim=16, num_hidden_layers=1, max_position_embeddings=8, **small
        ),
        geometry_encoder_config=t.Sam3GeometryEncoderConfig(num_layers=1, **small),
        detr_encoder_config=t.Sam3DETREncoderConfig(num_layers=1, **small),
        detr_decoder_config=t.Sam3DETRDecoderConfig(num_layers=1, num_queries=4, **small),
        mask_decoder_config=t.Sam3MaskDecoderConfig(hidden_size=WIDTH, num_attention_heads=2),
    )


def _sam3_video() -> tuple[Any, Any]:
    """What the hub's SAM 3 checkpoint is: a detector that texts prompt, and the tracker that points prompt."""
    import transformers as t

    parts = {"vision_config": _sam3_vision(), **_prompt_and_decoder("Sam3TrackerVideo", 16)}
    tracker = t.Sam3TrackerVideoConfig(**parts, **_memory())
    config = t.Sam3VideoConfig(detector_config=_sam3_config(), tracker_config=tracker, low_res_mask_size=16)
    return t.Sam3VideoModel(config), _square("Sam3ImageProcessor")


def _sam3() -> tuple[Any, Any]:
    """The detector alone, which no point prompts."""
    import transformers as t

    return t.Sam3Model(_sam3_config()), _square("Sam3ImageProcessor")


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "sam": _sam,
    "sam_hq": lambda: _sam("SamHQ"),
    "sam2": _sam2,
    "sam2_video": _sam2_video,
    "sam3_tracker": _sam3_tracker,
    "sam3_video": _sam3_video,
    "sam3": _sam3,
}
