"""What the bench tests share: the smallest bench there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from click.testing import CliRunner, Result

from fractrain.bench.subject import Setup
from fractrain.cli import main

TINY = ("--batch", "4", "--size", "8", "--repeats", "1", "--threads", "1", "--device", "cpu")


@pytest.fixture(scope="session")
def bench() -> Callable[..., Result]:
    """Run ``fractrain bench`` at its smallest in this process; stdout and stderr are kept apart."""

    def run(*args: object) -> Result:
        return CliRunner().invoke(main, ["bench", *TINY, *(str(arg) for arg in args)])

    return run


@pytest.fixture
def setup() -> Setup:
    """The same as a value."""
    return Setup("resnet38", 4, 8, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
