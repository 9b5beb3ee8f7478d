"""One encoded image to pixels: decoded, cropped, resized; the standard ImageNet preprocessing.

Training: a random part of 8 to 100 % of the area, with an aspect ratio of 3/4 to 4/3, resized to the wanted size, and
a mirror image half of the time (Szegedy et al. 2015). Evaluation: the shorter side to 256/224 of the wanted size, then
the middle. Both as torchvision's ``RandomResizedCrop`` and ``Resize`` + ``CenterCrop`` do it; a test compares them.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

from fractrain.util.errors import message_line

SCALE: Final = (0.08, 1.0)
RATIO: Final = (3 / 4, 4 / 3)
_TRIES: Final = 10

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]


class BadImage(Exception):
    """The bytes are not a whole image; the text says why, in a few words."""


def decode(data: bytes) -> Image.Image:
    """Decode a whole image to RGB.

    Pixels of 16 bits are scaled to 8 by their whole range. Pillow's own conversion would clip them, and those of 32
    bits and of floating point, to white or black; the range of the latter two is not known.

    Damage that the decoder does not notice (a changed byte inside the coded pixels) cannot be found without a checksum.

    Raises:
        BadImage: not an image, truncated, damaged, or of pixels whose range is not known.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about EXIF tags and palettes: nothing that changes the pixels
            return _eight_bits(Image.open(io.BytesIO(data))).convert("RGB")
    except UnidentifiedImageError as error:
        raise BadImage("not an image") from error
    except (MemoryError, BadImage):
        raise
    except Exception as error:  # Pillow's decoders raise about anything on damaged input, TypeError for a TIFF's tags
        raise BadImage(message_line(error)) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image whose pixels have at most 8 bits."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # a PNG has at most 16
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating point"
        raise BadImage(f"its pixels are {kind}, whose range is not known; convert it to 8 bits")
    return image


def crop_box(width: int, height: int, generator: torch.Generator) -> Box:
    """Draw the part of an image that ``RandomResizedCrop`` would take.

    torchvision draws from the global generator only; these are the same draws in the same order from one of our own.

    Returns:
        (top, left, height, width) in pixels.
    """
    area = width * height
    low, high = (math.log(r) for r in RATIO)
    for _ in range(_TRIES):
        target = area * torch.empty(1).uniform_(*SCALE, generator=generator).item()
        aspect = torch.exp(torch.empty(1).uniform_(low, high, generator=generator)).item()
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator).item())
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator).item())
            return top, left, h, w
    w, h = width, height  # an image much longer than wide: its middle, at the extreme ratio allowed
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def train_pixels(image: Image.Image, size: tuple[int, int], mirror: bool, seed: int) -> Pixels:
    """Return a random part of the image at ``size``, mirrored or not at random.

    Args:
        image: RGB.
        size: (height, width) wanted.
        seed: all random choices derive from it.

    Returns:
        uint8, shape ``[height, width, 3]``.
    """
    generator = torch.Generator().manual_seed(seed)
    top, left, h, w = crop_box(image.width, image.height, generator)
    part = image.crop((left, top, left + w, top + h)).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    if mirror and torch.rand(1, generator=generator).item() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(part)


def eval_pixels(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """Return the middle of the image after its shorter side was resized to 256/224 of the shorter side of ``size``.

    Args:
        image: RGB.
        size: (height, width) wanted.

    Returns:
        uint8, shape ``[height, width, 3]``.
    """
    from torchvision.transforms import functional as transform

    resized = transform.resize(image, [round(min(size) * 256 / 224)])
    return np.asarray(transform.center_crop(resized, list(size)))
