"""Image files, which come from anywhere, as tensors: what cannot be scored as it was
meant is refused in one sentence.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prompts.io.errors import UserError, first_line

MAX_EDGE = 16_384  # pixels: above it something went wrong before us, and every scorer would shrink it 70-fold
MAX_PIXELS = 2**26  # 8192 x 8192, 192 MiB once decoded


def read_image(path: Path) -> Tensor:
    """The image as uint8 `[3, H, W]`, upright (EXIF orientation), transparency and palettes composed on white.

    Raises UserError for what is missing, empty, truncated, no image, animated, of more than 8 bits a channel, wider or
    higher than MAX_EDGE, or of more than MAX_PIXELS. Size is checked before anything is decoded.
    """
    from PIL import Image, ImageOps

    if not path.is_file():
        raise UserError(f"{path}: no such image; check the path")
    if not path.stat().st_size:
        raise UserError(f"{path}: an empty file; make the image again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _check(path, image)
                upright = ImageOps.exif_transpose(image)
                if upright.has_transparency_data:
                    upright = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
                pixels = np.array(upright.convert("RGB"))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(f"{path}: more than {MAX_PIXELS} pixels once decoded; shrink it") from None
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{path}: truncated or not an image ({first_line(error)}); make it again") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _check(path: Path, image: Any) -> None:
    width, height = image.size
    if max(width, height) > MAX_EDGE:
        raise UserError(f"{path}: {width} x {height} pixels, the limit is {MAX_EDGE} an edge; shrink it")
    if width * height > MAX_PIXELS:
        raise UserError(f"{path}: {width} x {height} is more than {MAX_PIXELS} pixels; shrink it")
    # A phone's MPO holds a second view for depth, not a second frame in time.
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        raise UserError(f"{path}: animated, {frames} frames; save the one to be scored as an image of its own")
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{path}: more than 8 bits a channel (mode {image.mode}); save it with 8")


def as_bytes(image: Tensor) -> Tensor:
    """An image rounded to 8 bits, as files hold it: uint8, or float in [0, 1]."""
    return image if image.dtype == torch.uint8 else (image.clamp(0, 1) * 255).round().byte()
