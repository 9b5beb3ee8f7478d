from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fractrain.data import images, registry
from fractrain.util.errors import ConfigError, DataError


def test_names_and_fields():
    images = ("cifar10", "cifar100", "digits", "digits100", "digits32", "imagenet", "imagenette")
    texts = ("docs_text", "wikitext103", "wikitext2")
    assert registry.names() == tuple(sorted(images + texts))
    for name in registry.names():
        info = registry.info(name)
        assert info.name == name
        if name in images:
            assert len(info.mean) == len(info.std) == info.shape[0] == 3
        assert info.embedded == (info.bytes == 0)
    assert registry.info("digits").stands_for == "cifar10"
    assert registry.info("digits100").stands_for == "cifar100"
    assert not registry.info("digits").flip  # a mirrored digit is another sign
    assert registry.info("cifar10").mean == (0.4914, 0.4822, 0.4465)
    assert registry.info("cifar100").std == (0.2023, 0.1994, 0.2010)


@pytest.mark.parametrize(("typed", "meant"), [("cifar-10", "cifar10"), ("digit", "digits"), ("CIFAR100", "cifar100")])
def test_unknown_name_is_one_line_with_the_nearest(typed, meant):
    with pytest.raises(ConfigError) as caught:
        registry.load(typed)
    text = str(caught.value)
    assert "\n" not in text
    assert repr(typed) in text
    assert "`fractrain list datasets` shows all" in text
    assert meant in text


def test_listing_does_not_import_torch():
    code = "import sys, fractrain.data.registry as r; r.info('cifar10'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_permutation_is_pinned():
    # The raw stream of PCG64 is promised not to change; were it to, every split would silently be another one.
    assert images.permutation(8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert images.permutation(0, 0).tolist() == []


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(0, 2**63 - 1), st.floats(0, 1, allow_nan=False)
)
def test_stratified_takes_each_class_its_share(labels, seed, fraction):
    array = np.array(labels, dtype=np.int64)
    count = round(fraction * len(array))
    kept, taken = images.stratified(array, count, seed)
    assert len(taken) == count
    assert sorted([*kept.tolist(), *taken.tolist()]) == list(range(len(array)))
    for label in set(labels):
        share = labels.count(label) * count / len(array)
        assert abs(int((array[taken] == label).sum()) - share) < 1


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_fraction_outside_the_range(fraction):
    with pytest.raises(ConfigError, match="val_fraction is"):
        registry.load("digits", val_fraction=fraction)


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_fraction_that_leaves_a_class_empty(fraction):
    for name in ("digits", "digits100"):
        with pytest.raises(ConfigError, match="classes empty"):
            registry.load(name, val_fraction=fraction)


def test_split_refuses_other_types():
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(DataError, match="uint8"):
        images.Split(torch.zeros(2, 3, 4, 4), labels)
    with pytest.raises(DataError, match="not contiguous"):
        images.Split(torch.zeros(2, 4, 4, 3, dtype=torch.uint8).permute(0, 3, 1, 2), labels)
    with pytest.raises(DataError, match=r"int64 \[2\]"):
        images.Split(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), labels[:1])
