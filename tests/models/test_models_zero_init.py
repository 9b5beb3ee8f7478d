"""Residual blocks that start at zero are their shortcuts; the recipe decides, the paper's does not ask for it."""

import torch

from fractrain.engine.config import RunConfig
from fractrain.models.registry import build
from fractrain.models.resnet_cifar import BasicBlock


def test_a_block_with_zero_scale_is_relu_of_its_shortcut() -> None:
    model = build("resnet38", 10, (3, 8, 8))
    blocks = [m for m in model.modules() if isinstance(m, BasicBlock)]
    x = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(blocks[0](x), torch.relu(x))
    model.zero_init_residual()  # type: ignore[operator]
    for block, inputs in ((blocks[0], 16), (blocks[6], 16)):  # an identity shortcut and a projection
        y = torch.randn(4, inputs, 8, 8, generator=torch.Generator().manual_seed(1))
        assert torch.equal(block.eval()(y), torch.relu(block.shortcut(y)))


def test_only_the_embedded_sets_ask_for_it() -> None:
    def asked(dataset: str, profile: str) -> bool:
        config = RunConfig.create(method="fp32", model="resnet38", dataset=dataset, profile=profile)
        return config.recipe.zero_init_residual

    assert asked("digits", "smoke")
    assert asked("digits100", "smoke")
    assert not any(asked("cifar10", profile) for profile in ("smoke", "short", "paper"))
