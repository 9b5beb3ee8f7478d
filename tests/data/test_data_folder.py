from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from image_folders import CLASSES, entry, jpeg, make_folder
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torchvision import datasets, transforms
from torchvision.transforms import functional as reference

from fractrain.data.batches import Batching, FolderBatches
from fractrain.data.decode import RATIO, SCALE, BadImage, crop_box, decode, eval_pixels, train_pixels
from fractrain.data.folder import list_part
from fractrain.data.folder_data import read_folder
from fractrain.data.prefetch import WorkerFetcher, worker_count
from fractrain.util.errors import ConfigError, DataError, MachineError


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("FRACTRAIN_BAD_IMAGES", "FRACTRAIN_WORKERS", "FRACTRAIN_DATA", "FRACTRAIN_IMAGENET"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images") / "imagenette")


@pytest.fixture
def own_folder(folder, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(folder, tmp_path / "imagenette")


def epoch_of(stream, epoch, start=0):
    return [stream.batch(epoch, index) for index in range(start, len(stream))]


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# -- listing ---------------------------------------------------------------------------------------------------------


def test_listing_is_that_of_torchvision(own_folder):
    (own_folder / "train" / "n01" / "notes.txt").write_text("x")
    (own_folder / "train" / "n02" / "more").mkdir()
    (own_folder / "train" / "n02" / "more" / "deep.png").write_bytes(b"x")
    (own_folder / "train" / "README").write_text("x")
    part = list_part("imagenette", own_folder, "train")
    expected = datasets.ImageFolder(str(own_folder / "train"))
    assert [(str(part.path(i)), int(part.labels[i])) for i in range(len(part))] == expected.samples
    assert list(part.classes) == expected.classes
    assert part.ignored == 2
    assert part.sizes.tolist() == [os.path.getsize(path) for path, _ in expected.samples]


def test_digest_is_of_names_and_sizes(folder, own_folder):
    first = read_folder(entry(), folder)
    assert read_folder(entry(), own_folder).digest == first.digest
    assert (first.info.train_size, first.info.test_size) == (15, 6)
    path = own_folder / "train" / "n02" / "img_001.JPEG"
    path.write_bytes(path.read_bytes() + b"x")
    longer = read_folder(entry(), own_folder).digest
    path.rename(path.with_name("other.JPEG"))
    assert len({first.digest, longer, read_folder(entry(), own_folder).digest}) == 3


def test_validation_part_is_stratified_and_a_function_of_the_seed(folder):
    a, b, c = (read_folder(entry(), folder, 0.4, seed) for seed in (1, 1, 2))
    assert np.bincount(a.val.labels).tolist() == [2, 2, 2]
    assert sorted([*a.val.names.tolist(), *a.train.names.tolist()]) == read_folder(entry(), folder).train.names.tolist()
    assert a.digest == b.digest != c.digest
    with pytest.raises(ConfigError, match="classes empty"):
        read_folder(entry(), folder, 0.01)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "train").rename(f / "training"), ["no folder", "/train;", "there is training, val"]),
        (lambda f: shutil.rmtree(f / "val"), ["no folder", "/val;", "expected"]),
        (lambda f: shutil.rmtree(f / "val" / "n02"), ["/val lacks the class n02;"]),
        (lambda f: (f / "val" / "n03").rename(f / "val" / "m03"), ["/val lacks the class n03;"]),
        (lambda f: [(f / "val" / n).rename(f / "val" / f"x{n}") for n in CLASSES], ["n01 (and 2 more)"]),
        (lambda f: [shutil.rmtree(f / p / "n02") for p in ("train", "val")], ["2 class folders", "has 3 classes"]),
        (lambda f: [p.unlink() for p in (f / "train" / "n02").iterdir()], ["no image", "train/n02, which is empty"]),
        (
            lambda f: [p.rename(p.with_suffix(".txt")) for p in (f / "val" / "n01").iterdir()],
            ["no image", "val/n01, which holds", ".txt"],
        ),
        (lambda f: [shutil.rmtree(f / "train" / n) for n in CLASSES], ["no class folders"]),
    ],
)
def test_wrong_layout_is_one_line(own_folder, damage, words):
    damage(own_folder)
    with pytest.raises(DataError) as caught:
        read_folder(entry(), own_folder)
    text = one_line(caught)
    assert all(word in text for word in words), text


# -- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (128, 128), (7, 300), (300, 7), (1, 1), (3, 4)])
def test_crop_is_the_one_torchvision_draws(width, height):
    blank = Image.new("RGB", (width, height))
    for seed in range(40):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = transforms.RandomResizedCrop.get_params(blank, list(SCALE), list(RATIO))
        assert crop_box(width, height, torch.Generator().manual_seed(seed)) == expected


def test_pixels_are_those_of_torchvision():
    image = decode(jpeg(3, 90, 61))
    mirrored = 0
    for seed in range(12):
        top, left, h, w = crop_box(90, 61, torch.Generator().manual_seed(seed))
        expected = np.asarray(reference.resized_crop(image, top, left, h, w, [24, 24]))
        found = train_pixels(image, (24, 24), True, seed)
        same, flipped = np.array_equal(found, expected), np.array_equal(found, expected[:, ::-1])
        assert same or flipped
        assert np.array_equal(train_pixels(image, (24, 24), False, seed), expected)
        mirrored += flipped
    assert 2 <= mirrored <= 10
    chain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    assert np.array_equal(eval_pixels(image, (224, 224)), np.asarray(chain(image)))


def test_other_forms_become_rgb(tmp_path):
    for mode in ("L", "RGBA", "CMYK", "P", "1"):
        path = tmp_path / f"{mode}.tif"
        Image.new(mode, (8, 8)).save(path)
        assert decode(path.read_bytes()).mode == "RGB"


# -- the order -------------------------------------------------------------------------------------------------------


def bits(batch) -> bytes:
    return batch[0].contiguous().numpy().tobytes() + batch[1].numpy().tobytes()


def test_batches_are_a_function_of_seed_epoch_and_index(folder):
    data = read_folder(entry(), folder)
    plain = data.train_stream(4, 7, "cpu", workers=0)
    assert len(plain) == 4
    wanted = {(e, i): bits(plain.batch(e, i)) for e in (2, 0, 1) for i in (3, 1, 0, 2)}
    assert len(set(wanted.values())) == 12
    before = torch.get_rng_state()
    many = data.train_stream(4, 7, "cpu", workers=2)
    # In order over the end of an epoch, a resume, two skipped steps, a step back, a far jump.
    for at in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (2, 0), (2, 3), (2, 2), (0, 1)]:
        assert bits(many.batch(*at)) == wanted[at]
    assert torch.equal(torch.get_rng_state(), before)  # the training's own randomness is not touched
    assert many.waited_s > 0
    many.close()
    other = data.train_stream(4, 8, "cpu", workers=0)
    assert bits(other.batch(0, 0)) != wanted[0, 0]
    with pytest.raises(IndexError, match="batch 4 of 4"):
        many.batch(0, 4)


def test_a_batch_is_what_it_should_be(folder):
    data = read_folder(entry(), folder)
    loader = data.train_stream(4, 7, "cpu", workers=0)
    x, y = loader.batch(0, 0)
    assert (x.shape, x.dtype, y.dtype) == ((4, 3, 32, 32), torch.float32, torch.int64)
    assert x.is_contiguous(memory_format=torch.channels_last)
    fetched = FolderBatches(data.train, Batching((32, 32), 4, 7, True, True))[0, 0]
    expected = torch.stack([reference.normalize(reference.to_tensor(i.numpy()), data.info.mean, data.info.std)
                            for i in fetched.images])  # fmt: skip
    assert torch.equal(x, expected)
    seen = torch.cat([loader.batch(0, i)[1] for i in range(4)])
    assert torch.bincount(seen).tolist() == [5, 5, 5]
    assert len(loader.batch(0, 3)[1]) == 3


def test_crops_do_not_depend_on_batch_size_or_ranks(folder):
    part = read_folder(entry(), folder).train

    def epoch(size, rank=0, world=1):
        batches = FolderBatches(part, Batching((16, 16), size, 3, True, True, rank=rank, world=world))
        return [batches[1, i].images for i in range(len(batches))]

    whole = torch.cat(epoch(15))
    assert torch.equal(torch.cat(epoch(4)), whole)
    ranks = [epoch(4, rank, 3) for rank in range(3)]
    assert [[len(part) for part in rank] for rank in ranks] == [[1, 1, 1, 1], [1, 1, 1, 1], [2, 2, 2, 1]]
    assert torch.equal(torch.cat([torch.cat(parts) for parts in zip(*ranks, strict=True)]), whole)
    with pytest.raises(ConfigError, match="at least 3"):
        epoch(2, 0, 3)


def test_without_augmentation_the_middles_come_in_the_same_order(folder):
    data = read_folder(entry(), folder)
    plain = data.train_stream(15, 7, "cpu", augment=False, workers=0).batch(0, 0)
    crops = data.train_stream(15, 7, "cpu", workers=0).batch(0, 0)
    assert torch.equal(plain[1], crops[1])
    listed, shuffled = (FolderBatches(data.train, Batching((32, 32), 15, seed))[0, 0] for seed in (None, 7))
    label_of = {i.numpy().tobytes(): y for i, y in zip(listed.images, listed.labels.tolist(), strict=True)}
    assert len(label_of) == 15
    assert [label_of[i.numpy().tobytes()] for i in shuffled.images] == shuffled.labels.tolist() == plain[1].tolist()
    assert not torch.equal(plain[0], crops[0])


def test_evaluation_shows_every_image_once_in_order_again_and_again(folder):
    data = read_folder(entry(), folder)
    loader = data.eval_stream("test", 4, "cpu", workers=1)
    first, second = (list(loader) for _ in range(2))
    assert [bits(b) for b in first] == [bits(b) for b in second]
    assert len(first) == len(loader) == 2
    assert torch.cat([y for _, y in first]).tolist() == [0, 0, 1, 1, 2, 2]


# -- bad images ------------------------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("damage", "workers"),
    [(truncate, 0), (truncate, 1), (lambda p: p.write_bytes(b"not a photo"), 0), (lambda p: p.write_bytes(b""), 0)],
)
def test_a_bad_image_stops_the_run_where_it_is_used(own_folder, damage, workers):
    data = read_folder(entry(), own_folder)
    batches = FolderBatches(data.train, Batching((32, 32), 4, 7))
    at = batches._order_of(0)[9]  # in batch 2 of 4
    damage(data.train.path(at))
    loader = data.train_stream(4, 7, "cpu", workers=workers)
    loader.batch(0, 0)
    loader.batch(0, 1)  # a worker has met the bad file by now
    with pytest.raises(DataError) as caught:
        loader.batch(0, 2)
    text = one_line(caught)
    assert str(data.train.path(at)) in text
    assert "FRACTRAIN_BAD_IMAGES=skip" in text


def test_a_bad_image_is_replaced_by_the_next_of_its_class(own_folder, monkeypatch, caplog):
    monkeypatch.setenv("FRACTRAIN_BAD_IMAGES", "skip")
    data = read_folder(entry(), own_folder)
    good = FolderBatches(data.test, Batching((32, 32), 6))[0, 0].images
    truncate(data.test.path(1))  # the last of its class: the next one is the first
    truncate(data.train.path(6))
    truncate(data.train.path(7))
    fetched = FolderBatches(data.test, Batching((32, 32), 6, replace_bad=True))[0, 0]
    assert torch.equal(fetched.images, torch.stack([good[0], good[0], *good[2:]]))
    assert fetched.labels.tolist() == [0, 0, 1, 1, 2, 2]
    loader = data.train_stream(4, 7, "cpu", workers=0)
    for epoch in (0, 1):
        assert torch.bincount(torch.cat([y for _, y in epoch_of(loader, epoch)])).tolist() == [5, 5, 5]
    assert set(loader.bad_images) == {str(data.train.path(i)) for i in (6, 7)}
    assert [str(data.train.path(6)) in record.getMessage() for record in caplog.records].count(True) == 1
    again = data.train_stream(4, 7, "cpu", workers=1)
    assert [bits(b) for b in epoch_of(again, 1)] == [bits(b) for b in epoch_of(loader, 1)]


def test_what_skipping_does_not_cover(own_folder, monkeypatch):
    monkeypatch.setenv("FRACTRAIN_BAD_IMAGES", "skip")
    data = read_folder(entry(), own_folder)
    for i in (0, 1):
        truncate(data.test.path(i))
    data.train.path(4).unlink()
    with pytest.raises(DataError, match="nor any other image of its class") as caught:
        next(iter(data.eval_stream("test", 6, "cpu", workers=0)))
    one_line(caught)
    with pytest.raises(DataError, match=r"img_004.JPEG cannot be read: No such file") as caught:
        data.train_stream(15, 7, "cpu", workers=0).batch(0, 0)
    one_line(caught)


def damaged_tiffs():
    """A small TIFF with one byte changed, at every place."""
    out = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(out, "TIFF")
    for place in range(len(out.getvalue())):
        for value in (0, 2, 5, 7, 12, 255):
            data = bytearray(out.getvalue())
            data[place] = value
            yield bytes(data)


def test_a_damaged_tiff_is_an_image_or_a_bad_image():
    problems = []
    for data in damaged_tiffs():
        try:
            assert decode(data).mode == "RGB"
        except BadImage as problem:
            problems.append(str(problem))
    assert len(problems) > 20
    assert all(text and "\n" not in text for text in problems)


def test_whatever_the_decoder_raises_is_a_bad_image_but_for_memory(monkeypatch):
    def opening(error):
        def fail(_):
            raise error

        monkeypatch.setattr(Image, "open", fail)

    for error in (TypeError("'str' object\nis no integer"), ZeroDivisionError(), KeyError(273), OverflowError("big")):
        opening(error)
        with pytest.raises(BadImage) as caught:
            decode(jpeg(0))
        assert one_line(caught)
    opening(MemoryError())
    with pytest.raises(MemoryError):
        decode(jpeg(0))


# -- workers ---------------------------------------------------------------------------------------------------------


class _Dies:
    """Batches whose worker is killed, as the system does when memory runs out."""

    def __len__(self):
        return 3

    def __getitem__(self, at):
        os._exit(9)


def test_a_worker_that_dies_is_one_line(monkeypatch):
    # torch looks after its workers every five seconds; the test does not want to wait for that.
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    with pytest.raises(MachineError, match="FRACTRAIN_WORKERS") as caught:
        WorkerFetcher(_Dies(), 1).fetch(0, 0)
    one_line(caught)


SCRIPT = """
import sys
from pathlib import Path
from image_folders import entry
from fractrain.data.folder_data import read_folder

print("the script runs")
data = read_folder(entry(), Path(sys.argv[1]))
loader = data.train_stream(4, 7, "cpu", workers=1)
print(tuple(loader.batch(0, 0)[0].shape))
loader.close()
"""


def test_a_script_without_a_guard_for_its_main_part_may_read_folders(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "the script runs\n(4, 3, 32, 32)\n"), done.stderr


class _Fails:
    """Batches whose worker raises."""

    def __init__(self, text):
        self.text = text

    def __len__(self):
        return 3

    def __getitem__(self, at):
        raise RuntimeError(self.text)


def test_an_error_in_a_worker_is_not_called_a_death():
    fetcher = WorkerFetcher(_Fails("sizes do not match"), 1)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        fetcher.fetch(0, 0)
    fetcher = WorkerFetcher(_Fails("unable to allocate shared memory(shm) for file </torch_1>: No space left"), 1)
    with pytest.raises(MachineError, match=r"cannot hand them over .*No space left.*FRACTRAIN_WORKERS") as caught:
        fetcher.fetch(0, 0)
    assert "died" not in one_line(caught)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "died"),
        ("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are out "
         "of shared memory.", "died"),
        ("DataLoader worker (pid 12) exited unexpectedly with exit code 1.\nDetails are lost.", "died"),
        ("Too many open files. Communication with the workers is no longer possible.", "cannot hand them over"),
        ("CUDA error: an illegal memory access was encountered", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_what_a_runtime_error_is_about(text, words):
    def queue():
        raise RuntimeError(text)
        yield

    fetcher = WorkerFetcher(_Fails(""), 1)
    fetcher._queue = queue()
    with pytest.raises(MachineError if words else RuntimeError) as caught:
        fetcher.fetch(0, 0)
    if words:
        assert words in one_line(caught)
    else:
        assert str(caught.value) == text


def test_number_of_workers():
    cpu = torch.device("cpu")
    assert worker_count(cpu, {"FRACTRAIN_WORKERS": "0"}) == 0
    assert worker_count(cpu, {"FRACTRAIN_WORKERS": "5"}) == 5
    assert worker_count(cpu, {"LOCAL_WORLD_SIZE": "1000"}) == 1
    assert 1 <= worker_count(cpu, {}) <= worker_count(torch.device("cuda"), {}) <= 16
    for bad in ("-1", "many", "2.5"):
        with pytest.raises(ConfigError, match="expected a number"):
            worker_count(cpu, {"FRACTRAIN_WORKERS": bad})


def test_unknown_policy(folder, monkeypatch):
    data = read_folder(entry(), folder)
    monkeypatch.setenv("FRACTRAIN_BAD_IMAGES", "ignore")
    with pytest.raises(ConfigError, match="expected stop or skip"):
        data.train_stream(4, 0, "cpu", True)
