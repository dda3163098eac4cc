"""Image files of every kind that a folder of images turns out to hold."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate.images import MAX_EDGE, read_image
from prompts.io.errors import UserError

RED = Image.new("RGB", (20, 10), (255, 0, 0))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds no pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp"])
def test_an_image_is_bytes_in_chw(tmp_path: Path, name: str) -> None:
    RED.save(tmp_path / name, quality=100)
    pixels = read_image(tmp_path / name)
    assert pixels.shape == (3, 10, 20)
    assert pixels.dtype == torch.uint8
    assert (pixels[0].float().mean() > 250) and (pixels[1:].float().mean() < 5)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_composed_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    path = tmp_path / ("a.tif" if mode == "PA" else "a.png")
    if mode == "P":
        flat = Image.new("P", (4, 4), 1)
        flat.putpalette([255, 0, 0, 0, 0, 0])
        flat.putpixel((0, 0), 0)
        flat.save(path, transparency=1)
    elif mode == "PA":
        pytest.importorskip("PIL.TiffImagePlugin")
        image.save(path)
    else:
        image.convert(mode).save(path)
    pixels = read_image(path)
    assert pixels[:, 1, 1].tolist() == [255, 255, 255]
    assert pixels[0, 0, 0] == (76 if mode == "LA" else 255)


def test_half_transparent_black_is_grey(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").unique().tolist() == [127]


def test_grey_and_palettes_become_colour(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 77).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").unique().tolist() == [77]
    RED.convert("P").save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png")[:, 0, 0].tolist() == [255, 0, 0]


def test_the_camera_was_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    RED.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 20, 10)


def write(path: Path, kind: str) -> None:
    RED.save(path, "PNG")
    whole = path.read_bytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "header alone":
        path.write_bytes(whole[:20])
    elif kind == "truncated png":
        noise.save(path, "PNG")
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "truncated jpeg":
        noise.save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:-1500])
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "animated":
        RED.save(path, "GIF", save_all=True, append_images=[RED.rotate(90), RED.rotate(180)])
    elif kind == "bomb":
        path.write_bytes(png_header(16_000, 16_000))
    elif kind == "larger bomb":
        path.write_bytes(png_header(2**31 - 1, 2**31 - 1))
    elif kind == "30,000 wide":
        path.write_bytes(png_header(30_000, 20))
    elif kind == "many pixels":
        path.write_bytes(png_header(9_000, 9_000))
    elif kind == "16 bits":
        Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(path, "PNG")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such image"),
        ("folder", "no such image"),
        ("empty", "an empty file"),
        ("header alone", "truncated or not an image"),
        ("truncated png", "truncated or not an image"),
        ("truncated jpeg", "truncated or not an image"),
        ("text", "truncated or not an image"),
        ("animated", "animated, 3 frames"),
        ("bomb", "more than .* pixels"),
        ("larger bomb", "more than .* pixels"),
        ("30,000 wide", f"30000 x 20 pixels, the limit is {MAX_EDGE}"),
        ("many pixels", "9000 x 9000 is more than"),
        ("16 bits", "more than 8 bits a channel"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "a.png"
    write(path, kind)
    with pytest.raises(UserError, match=message) as caught:
        read_image(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert "\n" not in sentence
