"""From an image's bytes to small pictures. Runs in a limited child process only (files/limited_child.py): images are hostile.

What comes out has no metadata: no EXIF, no position, no comment, no profile. It stands upright, is sRGB, and is JPEG, or PNG where
something is transparent.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import pi_heif
from PIL import Image, ImageCms, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "HEIF")
KNOWN = "JPEG, PNG, WebP, GIF, AVIF or HEIC"
JPEG_QUALITY = 82
LARGEST_PROFILE = 4 * 2**20
ORIENTATION = 0x0112
LIES_ON_ITS_SIDE = {5, 6, 7, 8}
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image of this EXIF orientation is turned (TIFF 6.0, tag 274)."""
SRGB = ImageCms.createProfile("sRGB")
Size = tuple[int, int]


class UndrawableError(Exception):
    """The image cannot be drawn, and never will be; the text is one sentence."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A small picture; `kind` is `jpg` or `png`."""

    width: int
    height: int
    kind: str
    content: bytes


def get_ready() -> None:
    """Loads every format now: later nothing can be opened any more. A picture of each makes sure of what is loaded on first use."""
    pi_heif.register_heif_opener(thumbnails=False)
    pi_heif.options.DECODE_THREADS = 1
    Image.init()
    Image.MAX_IMAGE_PIXELS = None  # ours is stricter, and knows what JPEG's scaling saves
    for mode, kind in (("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "GIF"), ("RGBA", "WEBP"), ("RGB", "AVIF")):
        sample = io.BytesIO()
        profile = {"icc_profile": ImageCms.ImageCmsProfile(SRGB).tobytes()} if mode in {"RGB", "RGBA"} else {}
        Image.new(mode, (16, 16)).save(sample, kind, **profile)
        draw(sample, [(8, 8)], 1000)


def draw(file: IO[bytes], sizes: Sequence[Size], max_pixels: int) -> list[Picture]:
    """A picture for each box, none larger than the image, its proportions kept. Raises UndrawableError.

    `max_pixels`: so many may have to be decoded; of a JPEG an eighth in each direction is often enough.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _draw(file, sizes, max_pixels)
    except (UndrawableError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UndrawableError(_what_it_is(file)) from None
    except Exception as error:  # whatever a decoder raises about bytes that are not as they should be
        raise UndrawableError("The image is damaged: it ends too early or cannot be decoded.") from error


def _draw(file: IO[bytes], sizes: Sequence[Size], max_pixels: int) -> list[Picture]:
    file.seek(0)
    image: Image.Image = Image.open(file, formats=FORMATS)
    orientation = _orientation(image)
    profile = image.info.get("icc_profile")
    largest = max(sizes)
    box = (largest[1], largest[0]) if orientation in LIES_ON_ITS_SIDE else largest
    image.draft("RGB" if image.mode == "RGB" else None, _fitted(image.size, box))
    width, height = image.size
    if width * height > max_pixels:
        raise UndrawableError(f"The image has {width} x {height} pixels; at most {max_pixels // 10**6} million are decoded.")
    image = _resizable(image)
    image.thumbnail(box)
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    image = _shown(image, profile)
    pictures = {size: _saved(image, size) for size in sorted(set(sizes), reverse=True)}
    return [pictures[size] for size in sizes]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # an EXIF block that cannot be read says nothing
        return 1


def _fitted(size: Size, box: Size) -> Size:
    """How large an image of this size is inside the box."""
    scale = min(1.0, box[0] / size[0], box[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resizable(image: Image.Image) -> Image.Image:
    """In a mode whose pixels can be averaged."""
    if image.mode in {"P", "PA", "LA", "La", "RGBa"} or "transparency" in image.info:
        has_alpha = image.mode != "P" or "transparency" in image.info
        return image.convert("RGBA" if has_alpha else "RGB")
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        return image.convert("I").point(lambda value: value / 256).convert("L") if image.mode != "F" else image.convert("L")
    return image.convert("L") if image.mode == "1" else image


def _shown(image: Image.Image, profile: Any) -> Image.Image:
    """As sRGB, grey, or with transparency where there is any."""
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    if alpha is not None and alpha.getextrema() == (255, 255):
        alpha = None
    if image.mode != "L":
        image = _in_srgb(image.convert("RGB") if image.mode not in {"RGB", "CMYK"} else image, profile)
    if alpha is not None:
        image.putalpha(alpha)
    return image


def _in_srgb(image: Image.Image, profile: Any) -> Image.Image:
    if isinstance(profile, bytes) and 128 <= len(profile) <= LARGEST_PROFILE:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, SRGB, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # not one for these colours: shown as they are
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")


def _saved(image: Image.Image, size: Size) -> Picture:
    """`image` is upright, and shrinks: the sizes come the largest first."""
    image.thumbnail(size)
    image.info.clear()  # comments and texts would be written
    content = io.BytesIO()
    if image.mode == "RGBA":
        image.save(content, "PNG")
        return Picture(*image.size, "png", content.getvalue())
    image.save(content, "JPEG", quality=JPEG_QUALITY)
    return Picture(*image.size, "jpg", content.getvalue())


def _what_it_is(file: IO[bytes]) -> str:
    file.seek(0)
    start = file.read(1024)
    if not start:
        return "The file is empty."
    if b"<svg" in start or start.lstrip().startswith(b"<?xml"):
        return f"SVG and other XML files are not drawn; send {KNOWN}."
    return f"The file is no {KNOWN} image."
