"""Batched augmentation and normalization, on whichever device the images are.

Every random choice is drawn on the CPU beforehand, one per image of the epoch, and every float operation is a single
correctly rounded one, so that a batch is the same on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fractrain.data.info import DatasetInfo
from fractrain.util.seeds import derive_seed


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """Everything random about one epoch, by position in the epoch.

    Attributes:
        order: which image stands at each position; int64, shape ``[N]``, a permutation.
        top, left: offset of the crop in the padded image, 0 to 2 * pad; int64, shape ``[N]``.
        flip: whether the crop is mirrored left-right; bool, shape ``[N]``.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor

    def to(self, device: torch.device) -> EpochPlan:
        """Return the plan with all tensors on ``device``."""
        return EpochPlan(self.order.to(device), self.top.to(device), self.left.to(device), self.flip.to(device))


def epoch_plan(size: int, info: DatasetInfo, seed: int, epoch: int) -> EpochPlan:
    """Draw the plan of one epoch on the CPU: a pure function of the arguments.

    Args:
        info: gives ``pad`` and ``flip``.
        epoch: 0-based epoch.
    """
    order = torch.randperm(size, generator=_generator(derive_seed(seed, "order", epoch)))
    draw = _generator(derive_seed(seed, "augment", epoch))
    # All three are drawn in any case: that a data set does not flip leaves the crops as they are.
    top, left = torch.randint(0, 2 * info.pad + 1, (2, size), generator=draw)
    flip = torch.randint(0, 2, (size,), generator=draw) == 1
    return EpochPlan(order, top, left, flip & info.flip)


def crop_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> Tensor:
    """Pad with black, crop to the old size at each image's own offset, mirror some.

    Args:
        images: uint8, shape ``[B, H, W, C]``, contiguous.
        top: rows to skip in the padded image; int64, shape ``[B]``, 0 to 2 * pad.
        left: columns to skip, likewise.
        flip: mirror left-right after the crop; bool, shape ``[B]``.
        pad: pixels of black on each side.

    Returns:
        uint8, shape ``[B, H, W, C]``, contiguous.
    """
    batch, height, width, channels = images.shape
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))
    device = images.device
    row = torch.arange(height, device=device) + top[:, None]
    column = torch.arange(width, device=device)
    column = torch.where(flip[:, None], width - 1 - column, column) + left[:, None]
    # One gather of whole pixels out of the batch seen as one long list of pixels.
    first = torch.arange(batch, device=device)[:, None] * (height + 2 * pad)
    pixel = (first + row)[:, :, None] * (width + 2 * pad) + column[:, None, :]
    return padded.view(-1, channels).index_select(0, pixel.view(-1)).view(batch, height, width, channels)


class Normalizer:
    """``(pixel / 255 - mean) / std`` per channel, rounded exactly as torchvision's ``ToTensor`` and ``Normalize`` do.

    Args:
        mean, std: per channel.
        width: W of the images; the constants are laid out along a whole row, which keeps the inner loop long.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], width: int, device: torch.device) -> None:
        # A tensor on the device, not a Python number: CUDA turns division by a number into a multiplication.
        self._scale = torch.tensor(255.0, device=device)
        self._mean = torch.tensor(mean, dtype=torch.float32, device=device).repeat(width)
        self._std = torch.tensor(std, dtype=torch.float32, device=device).repeat(width)

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 ``[B, C, H, W]`` in channels_last format for uint8 ``[B, H, W, C]``."""
        rows = images.reshape(-1, len(self._mean)).to(torch.float32)
        rows.div_(self._scale).sub_(self._mean).div_(self._std)
        return rows.view(images.shape).permute(0, 3, 1, 2)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(seed)
