"""Images for the tests, good and hostile, made here."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image, ImageCms


def picture(kind: str, size: tuple[int, int] = (60, 40), mode: str = "RGB", colour: Any = (200, 30, 30), **options: Any) -> bytes:
    """An image of one colour in a format."""
    content = io.BytesIO()
    Image.new(mode, size, colour).save(content, kind, **options)
    return content.getvalue()


def turned(orientation: int) -> bytes:
    """A JPEG of 60 x 40 whose left half is white, with an EXIF orientation, a position and a comment."""
    image = Image.new("RGB", (60, 40), "black")
    image.paste("white", (0, 0, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=95, exif=exif, comment=b"secret comment")
    return content.getvalue()


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG that says it has this size, with these bytes as its pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack("!I", len(body)) + name + body + struct.pack("!I", zlib.crc32(name + body))

    head = struct.pack("!IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def gif(frames: int) -> bytes:
    """An animation."""
    first, *others = [Image.new("P", (20, 20), number % 250) for number in range(frames)]
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=others)
    return content.getvalue()


def swapped_profile() -> bytes:
    """A colour profile that is not sRGB's: what it calls red is not what a screen shows for it."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
