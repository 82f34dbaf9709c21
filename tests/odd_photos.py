"""A folder of what photo folders hold beside photos: each entry is to be read right, or named in one line."""

from __future__ import annotations

import io
import os
import socket
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 64)  # (H, W) of what can be read
READ = (
    *("plain.png", "Case.png", "case.png", "cmyk.jpg", "sixteen.png", "animated.gif", "turned.jpg", "palette.gif"),
    *("linked.png", "<script>alert(1)<.png", "new\nline.png", os.fsdecode(b"caf\xe9.png")),
)
"""Entries that are photos, however odd."""
REFUSED = {
    "pipe.png": "a named pipe",
    "socket.png": "a socket",
    "device.png": "a device",
    "folder.png": "a folder",
    "dangling.png": "which does not exist",
    "circular.png": "symbolic links",
    "empty.png": "an empty file",
    "huge.png": "at most 512 MB",
    "text.png": "no picture of a known format",
    "postscript.png": "no picture of a known format",
    "bomb.png": "decompression bomb",
    "truncated.jpg": "truncated",
    "torn.png": "damaged photo",
}
"""Entries that are not, and what their line says. The last two have a good header."""
BAD_PIXELS = ("truncated.jpg", "torn.png")


def photo(seed: int = 0) -> np.ndarray:
    """uint8 [48, 64, 3]: a red disc on grey that grows lighter to the right, and twice as fast downwards."""
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    pixels = np.repeat((x + 2 * y)[:, :, None], 3, axis=2).astype(np.uint8)
    pixels[(y - 20) ** 2 + (x - 30 - 2 * seed) ** 2 < 120] = (220, 40, 40)
    return pixels


def fill(folder: Path) -> None:
    """Make every entry of READ and REFUSED in a new folder."""
    folder.mkdir(parents=True)
    good = Image.fromarray(photo())
    for number, name in enumerate(("plain.png", "Case.png", "case.png", *READ[-3:])):
        Image.fromarray(photo(number)).save(folder / name)
    (folder / "linked.png").symlink_to(folder / "plain.png")
    good.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    Image.fromarray(photo()[:, :, 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    good.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", good.size, "blue")])
    good.quantize(16).save(folder / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    good.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif, quality=95)

    os.mkfifo(folder / "pipe.png")
    _socket(folder / "socket.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "circular.png").symlink_to(folder / "circular.png")
    (folder / "empty.png").touch()
    _huge(folder / "huge.png")
    (folder / "text.png").write_text("this was never a picture")
    (folder / "postscript.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    _bomb(folder / "bomb.png")
    data = io.BytesIO()
    good.resize((640, 480)).save(data, "JPEG", quality=95)
    (folder / "truncated.jpg").write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    whole = (folder / "plain.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])


def _socket(path: Path) -> None:
    """Bound from its own folder: the whole path may be longer than sockets allow."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _header(side: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))


def _huge(path: Path) -> None:
    """2 GB on paper, a page on disk: a picture whose comment is said to be that long."""
    with open(path, "wb") as file:
        file.write(_header(64) + struct.pack(">I", 2_000_000_000) + b"tEXt")
        file.truncate(2 * 2**30)


def _bomb(path: Path) -> None:
    """20,000 x 20,000 pixels in 400 kB."""
    path.write_bytes(_header(20_000) + _chunk(b"IDAT", zlib.compress(bytes(20_001 * 20_000), 1)) + _chunk(b"IEND", b""))


if __name__ == "__main__":
    fill(Path(sys.argv[1]))
