"""From an image's bytes to small pictures, in this process: the same code as in the limited child."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from files import drawing
from files.drawing import Picture, UndrawableError, draw
from tests.unit.image_files import gif, picture, png, swapped_profile, turned


@pytest.fixture(scope="module", autouse=True)
def ready() -> None:
    drawing.get_ready()


def drawn(content: bytes, *sizes: tuple[int, int], max_pixels: int = 10**6) -> Picture:
    return draw(io.BytesIO(content), sizes or [(30, 30)], max_pixels)[0]


def opened(made: Picture) -> Image.Image:
    image = Image.open(io.BytesIO(made.content))
    image.load()
    assert image.size == (made.width, made.height)
    return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_every_format_becomes_a_picture_inside_the_box(kind: str) -> None:
    made = drawn(picture(kind))
    assert (made.width, made.height, made.kind) == (30, 20, "jpg")
    red, green, blue = opened(made).convert("RGB").getpixel((10, 10))  # type: ignore[misc]
    assert red > 180
    assert max(green, blue) < 60


def test_nothing_is_enlarged() -> None:
    made = drawn(picture("PNG", (12, 7)), (256, 256))
    assert (made.width, made.height) == (12, 7)


@pytest.mark.parametrize(
    ("orientation", "size", "white"),
    [
        (1, (30, 20), (4, 10)),
        (2, (30, 20), (26, 10)),
        (3, (30, 20), (26, 10)),
        (4, (30, 20), (4, 10)),
        (5, (20, 30), (10, 4)),
        (6, (20, 30), (10, 4)),
        (7, (20, 30), (10, 26)),
        (8, (20, 30), (10, 26)),
    ],
)
def test_an_image_that_lies_on_its_side_is_turned(orientation: int, size: tuple[int, int], white: tuple[int, int]) -> None:
    made = drawn(turned(orientation))
    assert (made.width, made.height) == size
    grey = opened(made).convert("L")
    assert grey.getpixel(white) > 200  # type: ignore[operator]
    assert grey.getpixel((size[0] - 1 - white[0], size[1] - 1 - white[1])) < 55  # type: ignore[operator]


def test_nothing_but_the_picture_is_kept() -> None:
    made = drawn(turned(6))
    assert b"secret" not in made.content
    assert b"Exif" not in made.content
    assert dict(opened(made).getexif()) == {}


def test_what_is_transparent_stays_so_and_only_that() -> None:
    assert opened(drawn(picture("PNG", mode="RGBA", colour=(9, 9, 9, 90)))).getpixel((3, 3))[3] == 90  # type: ignore[index]
    assert drawn(picture("PNG", mode="RGBA", colour=(9, 9, 9, 255))).kind == "jpg"
    assert drawn(picture("GIF", mode="P", colour=3, transparency=3)).kind == "png"
    assert drawn(picture("PNG", mode="LA", colour=(9, 0))).kind == "png"


@pytest.mark.parametrize(("mode", "colour", "kind"), [("1", 1, "PNG"), ("I;16", 65_000, "PNG"), ("L", 250, "JPEG"), ("CMYK", 0, "JPEG")])
def test_other_modes_look_as_they_should(mode: str, colour: int, kind: str) -> None:
    assert opened(drawn(picture(kind, mode=mode, colour=colour))).convert("L").getpixel((5, 5)) > 240  # type: ignore[operator]


def test_a_profile_that_does_not_fit_is_left_aside() -> None:
    assert drawn(picture("JPEG", icc_profile=swapped_profile())).kind == "jpg"
    assert drawn(picture("JPEG", icc_profile=b"x" * 200)).kind == "jpg"


def test_several_sizes_are_drawn_in_their_order() -> None:
    made = draw(io.BytesIO(picture("PNG", (400, 200))), [(10, 10), (100, 100), (50, 50)], 10**6)
    assert [each.width for each in made] == [10, 100, 50]


def test_of_an_animation_the_first_frame_counts() -> None:
    assert drawn(gif(300)).kind == "jpg"


def test_a_jpeg_is_decoded_smaller_than_it_is() -> None:
    assert drawn(picture("JPEG", (4000, 3000)), (256, 256), max_pixels=200_000).width == 256


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "The file is empty."),
        (b"only text", "The file is no JPEG, PNG, WebP, GIF, AVIF or HEIC image."),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG and other XML files are not drawn; send JPEG, PNG, WebP, GIF, AVIF or HEIC."),
        (b'\xef\xbb\xbf<?xml version="1.0"?><svg/>', "SVG and other XML files are not drawn"),
        (picture("TIFF"), "The file is no JPEG"),
        (png(30_000, 30_000, bytes(1000)), "The image has 30000 x 30000 pixels; at most 1 million are decoded."),
        (png(900, 900, bytes(1000)), "The image is damaged: it ends too early or cannot be decoded."),
        (picture("JPEG", (900, 900))[:3000], "The image is damaged"),
        (picture("WEBP")[:40], "The "),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(200), "The "),
        (b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;", "The image has 65535 x 65535"),
    ],
)
def test_what_is_no_good_image_is_refused_in_one_sentence(content: bytes, sentence: str) -> None:
    with pytest.raises(UndrawableError) as refused:
        drawn(content)
    assert str(refused.value).startswith(sentence)
