"""Blocks that gates cannot be put before are refused in words; likely ones are proposed."""

from __future__ import annotations

import pytest
import torch
from layer_models import Block, batches, seeded
from torch import nn
from torchvision.models import shufflenet_v2_x0_5

import fractrain
from fractrain.util.errors import ConfigError


def row() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(Block(), Block()), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.parts = nn.Conv2d(3, 8, 1), nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for part in self.parts:
            x = part(x)
        return x


@pytest.mark.parametrize(
    ("build", "blocks"), [(row, ["1.0", "1.1"]), (Listed, ["parts.0", "parts.1", "parts.2"])], ids=["row", "list"]
)
def test_blocks_are_proposed_and_the_proposal_trains(build, blocks: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"has no blocks known.*attach\(") as error:
        fractrain.attach("dfq", seeded(build))
    assert f"attach(..., blocks={blocks})" in str(error.value)
    session = fractrain.attach("dfq", seeded(build), blocks=blocks)
    session.loss(session.model(next(batches(1))[0]).square().mean()).backward()
    session.step()
    assert session.report().covered > 99


@pytest.mark.parametrize("method", ["dfq", "fractrain"])
def test_blocks_that_are_only_named_alike_are_refused_at_attach(method: str) -> None:
    with pytest.raises(ConfigError, match=r"InvertedResidual from .*shufflenetv2 split their input") as error:
        fractrain.attach(method, shufflenet_v2_x0_5(num_classes=4))
    assert "\n" not in str(error.value)


class Halves(nn.Module):
    """A block that splits its input, under no name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([a, self.conv(b)], 1)


@pytest.mark.parametrize("blocks", [["1"], ["1", "2"]])
def test_other_blocks_that_split_their_input_are_refused_in_words(blocks: list[str]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Halves(), Halves(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    session = fractrain.attach("dfq", model, blocks=blocks)
    with pytest.raises(ConfigError, match=r"'1' \(Halves\) takes float32 \[4, 8, 6, 6\]; none .* the 4 channels"):
        session.model(next(batches(1))[0])
