from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms import Compose, Normalize, ToTensor

from fractrain.data import augment, in_memory, registry
from fractrain.data.images import Split
from fractrain.util.errors import ConfigError

CIFAR = registry.info("cifar10")
DIGITS = registry.info("digits")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def random_split(n=50, shape=(3, 32, 32), seed=0):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, *shape), generator=draw, dtype=torch.uint8)
    return Split(images, torch.arange(n))  # the label tells which image it is


def epoch_of(stream, epoch, start=0):
    return [stream.batch(epoch, index) for index in range(start, len(stream))]


def reference(image, top, left, flip, info, crop=True):
    """Treat one image the slow way: PIL and torchvision's transforms."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    width, height = picture.size
    if crop:
        picture = ImageOps.expand(picture, border=info.pad, fill=0).crop((left, top, left + width, top + height))
        picture = ImageOps.mirror(picture) if flip else picture
    return Compose([ToTensor(), Normalize(info.mean, info.std)])(picture)


@pytest.mark.parametrize(("info", "shape"), [(CIFAR, (3, 32, 32)), (DIGITS, (3, 8, 8)), (DIGITS, (3, 8, 16))])
def test_batches_equal_the_slow_loop_bit_for_bit(info, shape):
    split = random_split(70, shape)
    plan = augment.epoch_plan(70, info, seed=3, epoch=2)
    batches = in_memory.TrainStream(split, info, 32, seed=3, device="cpu")
    for index in range(len(batches)):
        images, labels = batches.batch(2, index)
        for row, image in enumerate(images):
            at = index * 32 + row
            number = int(plan.order[at])
            top, left, flip = int(plan.top[at]), int(plan.left[at]), bool(plan.flip[at])
            assert int(labels[row]) == number
            assert torch.equal(image, reference(split.images[number], top, left, flip, info))


def test_every_offset_and_both_directions_against_the_slow_loop():
    split = random_split(1)
    offsets = [(t, x, f) for t in range(9) for x in range(9) for f in (False, True)]
    top, left, flip = (torch.tensor(part) for part in zip(*offsets, strict=True))
    images = split.images.permute(0, 2, 3, 1).expand(len(offsets), -1, -1, -1).contiguous()
    cropped = augment.crop_flip(images, top, left, flip, pad=4)
    normal = augment.Normalizer(CIFAR.mean, CIFAR.std, 32, torch.device("cpu"))(cropped)
    for row, (t, x, f) in enumerate(offsets):
        assert torch.equal(normal[row], reference(split.images[0], t, x, f, CIFAR))


def test_all_pixel_values_are_normalized_as_torchvision_does():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    split = Split(values, torch.zeros(1, dtype=torch.int64))
    (images, _) = in_memory.EvalStream(split, CIFAR, 4, "cpu").batch(0)
    assert torch.equal(images[0], reference(values[0], 0, 0, False, CIFAR, crop=False))


def test_shapes_types_and_memory_format():
    for images, labels in epoch_of(in_memory.TrainStream(random_split(), CIFAR, 32, 0, "cpu"), 0):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.shape[1:] == (3, 32, 32)
        assert images.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 2**40), epoch=st.integers(0, 500))
def test_every_image_once_per_epoch_whatever_the_batch_size(n, batch, seed, epoch):
    split = random_split(n, (3, 4, 4))
    batches = in_memory.TrainStream(split, DIGITS, batch, seed, "cpu")
    parts = epoch_of(batches, epoch)
    assert len(parts) == len(batches) == -(-n // batch)
    assert [len(labels) for _, labels in parts[:-1]] == [batch] * (len(parts) - 1)
    labels = torch.cat([labels for _, labels in parts])
    assert labels.sort().values.tolist() == list(range(n))
    (whole, whole_labels) = in_memory.TrainStream(split, DIGITS, n, seed, "cpu").batch(epoch, 0)
    assert torch.equal(torch.cat([images for images, _ in parts]), whole)
    assert torch.equal(labels, whole_labels)


def test_a_batch_depends_on_seed_epoch_and_index_only():
    split = random_split(60)
    forward = in_memory.TrainStream(split, CIFAR, 16, 9, "cpu")
    wanted = {(e, i): forward.batch(e, i) for e in range(3) for i in range(4)}
    jumping = in_memory.TrainStream(split, CIFAR, 16, 9, "cpu")
    torch.manual_seed(123)  # global state must not matter
    for e, i in [(2, 3), (0, 1), (2, 0), (1, 2), (0, 0), (2, 3), (1, 3)]:
        images, labels = jumping.batch(e, i)
        assert torch.equal(images, wanted[e, i][0])
        assert torch.equal(labels, wanted[e, i][1])
    resumed = epoch_of(in_memory.TrainStream(split, CIFAR, 16, 9, "cpu"), 1, start=2)
    assert [torch.equal(a[0], wanted[1, i][0]) for i, a in zip((2, 3), resumed, strict=True)] == [True, True]


def test_seeds_and_epochs_differ():
    split = random_split(60)
    one, two = (in_memory.TrainStream(split, CIFAR, 60, seed, "cpu") for seed in (0, 1))
    orders = [one.batch(0, 0)[1], one.batch(1, 0)[1], two.batch(0, 0)[1]]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    a, b = augment.epoch_plan(60, CIFAR, 0, 0), augment.epoch_plan(60, CIFAR, 0, 1)
    assert not torch.equal(a.top, b.top)
    assert not torch.equal(a.top, a.left)


def test_choices_are_spread_evenly():
    plan = augment.epoch_plan(90_000, CIFAR, seed=0, epoch=0)
    for offsets in (plan.top, plan.left):
        counts = torch.bincount(offsets, minlength=9)
        assert len(counts) == 9
        # 10,000 expected with standard deviation sqrt(90000 * 1/9 * 8/9) = 94; five of them
        assert (counts - 10_000).abs().max() < 472
    assert abs(int(plan.flip.sum()) - 45_000) < 5 * 150  # sqrt(90000 / 4) = 150
    assert not augment.epoch_plan(1000, DIGITS, seed=0, epoch=0).flip.any()


def test_without_augmentation_same_order_plain_images():
    split = random_split(40)
    plain = in_memory.TrainStream(split, CIFAR, 16, 5, "cpu", augment=False)
    full = in_memory.TrainStream(split, CIFAR, 16, 5, "cpu")
    ordered = in_memory.EvalStream(split, CIFAR, 40, "cpu").batch(0)[0]
    for index in range(len(plain)):
        images, labels = plain.batch(0, index)
        assert torch.equal(labels, full.batch(0, index)[1])
        assert torch.equal(images, ordered[labels])


def test_eval_in_order_again_and_again():
    batches = in_memory.EvalStream(random_split(50), CIFAR, 16, "cpu")
    assert len(batches) == 4
    for _ in range(2):
        assert torch.cat([labels for _, labels in batches]).tolist() == list(range(50))
    assert torch.equal(batches.batch(3)[0], list(batches)[3][0])


def test_the_split_is_not_changed():
    split = random_split(40)
    before = split.images.clone()
    images, _ = in_memory.EvalStream(split, CIFAR, 40, "cpu").batch(0)
    images.zero_()
    in_memory.TrainStream(split, CIFAR, 40, 0, "cpu").batch(0, 0)[0].zero_()
    assert torch.equal(split.images, before)


def test_bad_arguments():
    split = random_split(4)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        in_memory.TrainStream(split, CIFAR, 0, 0, "cpu")
    with pytest.raises(ConfigError, match="no images"):
        in_memory.EvalStream(Split(split.images[:0], split.labels[:0]), CIFAR, 4, "cpu")
    with pytest.raises(IndexError, match="batch 2 of 2"):
        in_memory.TrainStream(split, CIFAR, 2, 0, "cpu").batch(0, 2)
    with pytest.raises(IndexError, match="batch -1 of 2"):
        in_memory.EvalStream(split, CIFAR, 2, "cpu").batch(-1)


def test_images_too_large_for_the_device_are_moved_batch_by_batch(monkeypatch):
    monkeypatch.setattr(in_memory, "fits_on_device", lambda split, device: False)
    images, labels = in_memory.TrainStream(random_split(40), CIFAR, 16, 0, "meta").batch(0, 2)
    assert images.device.type == labels.device.type == "meta"
    assert images.shape == (8, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_fits_on_device(monkeypatch):
    split = random_split(10)  # 30,720 bytes
    assert in_memory.fits_on_device(split, "cpu")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * 30_720, 10**9))
    assert in_memory.fits_on_device(split, "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * 30_720 - 1, 10**9))
    assert not in_memory.fits_on_device(split, "cuda")


@needs_cuda
@pytest.mark.parametrize("fits", [True, False])
def test_cuda_gives_the_same_bits(monkeypatch, fits):
    split = random_split(60)
    here = in_memory.TrainStream(split, CIFAR, 16, 1, "cpu")
    monkeypatch.setattr(in_memory, "fits_on_device", lambda split, device: fits)
    there = in_memory.TrainStream(split, CIFAR, 16, 1, "cuda")
    for index in range(4):
        for a, b in zip(here.batch(3, index), there.batch(3, index), strict=True):
            assert b.device.type == "cuda"
            assert torch.equal(a, b.cpu())


def test_a_batch_is_made_without_a_loop_over_its_images():
    assert calls(128) == calls(16)


def calls(batch_size):
    """Calls, of Python and C functions, that one batch of CIFAR takes."""
    batches, count = in_memory.TrainStream(random_split(256), CIFAR, batch_size, 0, "cpu"), 0

    def counted(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    batches.batch(0, 0)  # what is made once
    sys.setprofile(counted)
    try:
        batches.batch(0, 1)
    finally:
        sys.setprofile(None)
    return count
