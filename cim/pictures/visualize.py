"""Instances painted over photographs: translucent fills, crisp contours, readable labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from cim.core.errors import CimError
from cim.core.files import atomic
from cim.core.run_lengths import as_rle, valid_rles

Colour = tuple[int, int, int]  # RGB
Segmentation = Mapping[str, Any] | list[Any]  # COCO's: run lengths of both kinds, or polygons

# Okabe and Ito's seven hues, then the colours farthest from all before them, for normal sight and
# for red- and green-blind sight alike (greedy in CIELAB; luminance between 38 and 90).
_PALETTE = np.frombuffer(
    bytes.fromhex(
        "e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 7100ff 38ffaa 7171ff c60038"
        "ffc6e2 c6e271 aa1c71 8daa55 8d1cc6 c600aa ff718d 007138 8d8dff aa3800 71c6aa"
        "387155 ffc6ff 5555ff 718d55 1cffc6 ff71e2 ffc68d c67138 8dc655 8d8dc6"
    ),
    np.uint8,
).reshape(32, 3)
_FONTS = ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf")
_EAST_ASIAN_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "msyh.ttc", "PingFang.ttc")
_GAP = 6  # pixels between the panels of a side-by-side picture


def class_colour(class_id: int) -> Colour:
    """RGB of a class, the same in every picture and chart; beyond 32 classes the hues return, darker or paler."""
    rgb = _PALETTE[class_id % 32].astype(float)
    turn = (class_id // 32) % 3
    rgb = rgb if turn == 0 else rgb * 0.62 if turn == 1 else 255 - (255 - rgb) * 0.55
    red, green, blue = (int(value) for value in rgb.round())
    return red, green, blue


def draw_instances(
    image: np.ndarray,
    masks: np.ndarray | Sequence[Segmentation],
    labels: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
    class_ids: Sequence[int] | None = None,
    colours: Sequence[Colour] | None = None,
    alpha: float = 0.42,
    lettering: float = 1.0,
) -> np.ndarray:
    """A copy of the photo with instances painted on it, large ones first.

    Args:
        image: uint8 [H, W, 3], RGB.
        masks: bool [n, H, W], or n COCO segmentations (decoded one by one).
        labels: n texts; None draws none unless there are scores.
        scores: n confidences, appended to the labels.
        class_ids: n class indices 0..C-1, which choose the colours; without them instance i has colour i.
        colours: n RGB triples instead.
        alpha: opacity of the fills, 0..1.
        lettering: factor on the size of labels, for pictures that will be shown small.

    Returns:
        uint8 [H, W, 3].

    Raises:
        CimError: masks of another size than the photo, or damaged run lengths.
    """
    size = image.shape[:2]
    if isinstance(masks, np.ndarray) and len(masks) and masks.shape[1:] != size:
        raise CimError("masks of another size than the photo", expected=list(size), found=list(masks.shape[1:]))
    painted = np.ascontiguousarray(image).copy()
    boxed = [_crop(mask if isinstance(mask, np.ndarray) else decode(mask, size)) for mask in masks]
    if colours is None:
        colours = [class_colour(index) for index in (range(len(boxed)) if class_ids is None else class_ids)]
    thickness = max(1, round(min(size) / 320))
    order = sorted(range(len(boxed)), key=lambda i: -int(boxed[i][1].sum()))
    for index in order:
        _fill(painted, *boxed[index], colours[index], alpha)
    for index in order:
        _outline(painted, *boxed[index], colours[index], thickness)
    texts = _texts(labels, scores, len(boxed))
    shown = [index for index in reversed(order) if texts[index] and boxed[index][1].size]
    if not shown:
        return painted
    return _write(painted, [(texts[i], colours[i], boxed[i][0], boxed[i][1].shape) for i in shown], lettering)


def decode(segmentation: Segmentation, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] of a COCO segmentation of any kind.

    Raises:
        CimError: damaged, or of another size.
    """
    try:
        rle = as_rle(segmentation, size)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CimError("damaged mask", found=error) from None
    if tuple(rle["size"]) != tuple(size):
        raise CimError("mask of another size than the photo", expected=list(size), found=list(rle["size"]))
    if not valid_rles([rle])[0]:
        raise CimError("damaged mask", expected=f"run lengths of {size[0] * size[1]} pixels")
    return coco_mask.decode(rle).astype(bool)


def side_by_side(left: np.ndarray, right: np.ndarray, titles: tuple[str, str] | None = None) -> np.ndarray:
    """Two pictures of one size beside each other under their titles, uint8 [H + bar, 2W + gap, 3]."""
    height, width = left.shape[:2]
    text = _text_size(left.shape[:2])
    bar = 0 if titles is None else text * 2
    canvas = np.full((height + bar, 2 * width + _GAP, 3), 255, np.uint8)
    canvas[bar:, :width], canvas[bar:, width + _GAP :] = left, right
    if titles is None:
        return canvas
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for start, title in zip((0, width + _GAP), titles, strict=True):
        _put(draw, (start + text // 2, bar // 2), title, (30, 30, 30), text, anchor="lm")
    return np.asarray(picture)


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """The picture with its long side at most ``side`` pixels."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    width, height = (max(1, round(length * scale)) for length in (image.shape[1], image.shape[0]))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def save_picture(path: str | Path, image: np.ndarray, quality: int = 90) -> None:
    """JPEG, PNG or WebP by the name's ending, atomically."""
    with atomic(path) as temporary:
        Image.fromarray(image).save(temporary, quality=quality)


# ---------------------------------------------------------------------- painting


def _crop(mask: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
    """((y, x), the mask inside its tight box as uint8 [h, w]); an empty mask has an empty crop."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return (0, 0), np.zeros((0, 0), np.uint8)
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return (int(rows[0]), int(columns[0])), np.ascontiguousarray(inside, dtype=np.uint8)


def _fill(image: np.ndarray, at: tuple[int, int], mask: np.ndarray, colour: Colour, alpha: float) -> None:
    window = image[at[0] : at[0] + mask.shape[0], at[1] : at[1] + mask.shape[1]]
    inside = mask.view(bool)
    blend = window[inside] * (1 - alpha) + np.array(colour) * alpha
    window[inside] = blend.round().astype(np.uint8)


def _outline(image: np.ndarray, at: tuple[int, int], mask: np.ndarray, colour: Colour, thickness: int) -> None:
    if not mask.size:
        return
    lines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(at[1], at[0]))
    # A dark line below the coloured one keeps it visible on grounds of its own colour.
    cv2.drawContours(image, lines, -1, (20, 20, 20), thickness + 1, cv2.LINE_AA)
    cv2.drawContours(image, lines, -1, tuple(colour), thickness, cv2.LINE_AA)


# ---------------------------------------------------------------------- lettering


def _texts(labels: Sequence[str] | None, scores: Sequence[float] | None, count: int) -> list[str]:
    names = [""] * count if labels is None else [str(label) for label in labels]
    if scores is None:
        return names
    return [f"{name} {score:.2f}".strip() for name, score in zip(names, scores, strict=True)]


def _text_size(size: tuple[int, int]) -> int:
    return int(np.clip(min(size) / 26, 11, 40))


@lru_cache(maxsize=64)
def _font(size: int, east_asian: bool) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """The first font there is; Pillow's own (Latin letters only) when the machine has none."""
    for name in (*(_EAST_ASIAN_FONTS if east_asian else ()), *_FONTS):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _font_for(text: str, size: int) -> tuple[str, ImageFont.ImageFont | ImageFont.FreeTypeFont]:
    font = _font(size, any(ord(letter) >= 0x2E80 for letter in text))
    if isinstance(font, ImageFont.FreeTypeFont):
        return text, font
    return text.encode("latin1", "replace").decode("latin1"), font  # a bitmap font knows no other letters


def _put(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: Colour, size: int, anchor: str) -> None:
    text, font = _font_for(text, size)
    if isinstance(font, ImageFont.FreeTypeFont):
        draw.text(at, text, fill=colour, font=font, anchor=anchor)
        return
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)  # bitmap fonts have no anchors
    shift = ((right - left) / 2 if anchor[0] == "m" else 0, (bottom - top) / 2)
    draw.text((at[0] - shift[0], at[1] - shift[1]), text, fill=colour, font=font)


def _write(
    image: np.ndarray, items: list[tuple[str, Colour, tuple[int, int], tuple[int, ...]]], lettering: float
) -> np.ndarray:
    """Labels on pills of the class colour, each where it hides least; small instances get small letters."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    extents = np.array([[at[1], at[0], at[1] + shape[1], at[0] + shape[0]] for _, _, at, shape in items], float)
    placed = np.zeros((0, 4))
    for (text, colour, _, shape), extent in zip(items, extents, strict=True):
        size = round(lettering * max(9, min(_text_size(image.shape[:2]), max(shape) // 5)))
        shown, font = _font_for(text, size)
        left, _, right, _ = draw.textbbox((0, 0), shown, font=font)
        pill = np.array([right - left + size * 0.8, size * 1.5])
        small = extents[(extents[:, 2:] - extents[:, :2]).prod(1) < 6 * pill.prod()]
        box = _place(pill, extent, image.shape[:2], np.concatenate([placed, placed, small]))
        placed = np.concatenate([placed, box[None]])
        draw.rounded_rectangle(box.tolist(), radius=size * 0.4, fill=tuple(colour), outline=(20, 20, 20))
        middle = (float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2)
        _put(draw, middle, text, _ink(colour), size, anchor="mm")
    return np.asarray(picture)


def _place(pill: np.ndarray, extent: np.ndarray, size: tuple[int, int], avoid: np.ndarray) -> np.ndarray:
    """xyxy of a pill around or on its instance, inside the picture, over as little of ``avoid`` as can be."""
    (x, y), (x2, y2), centre = extent[:2], extent[2:], (extent[:2] + extent[2:] - pill) / 2
    width, height = pill
    spots = [(x, y - height), (centre[0], y - height), (x2 - width, y - height), (x, y), tuple(centre),
             (x, y2 - height), (x2 - width, y), (x2 - width, y2 - height), (x, y2), (x2, centre[1]),
             (x - width, centre[1])]  # fmt: skip
    corners = np.clip(np.array(spots), 0, np.maximum(np.array([size[1], size[0]]) - 1 - pill, 0))
    boxes = np.concatenate([corners, corners + pill], 1)
    low = np.maximum(boxes[:, None, :2], avoid[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], avoid[None, :, 2:])
    covered = np.clip(high - low, 0, None).prod(-1).sum(1)
    return boxes[int(np.argmin(covered))]


def _ink(colour: Colour) -> Colour:
    """Black or white, whichever stands out more (WCAG relative luminance)."""
    part = np.array(colour) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return (0, 0, 0) if float(linear @ [0.2126, 0.7152, 0.0722]) > 0.179 else (255, 255, 255)
