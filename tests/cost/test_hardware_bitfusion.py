"""bitfusion against the 369 recorded products of its authors' simulator, a slow search, and known figures."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fractrain.cost.hardware import LayerShape, Product, WorkRow, create
from fractrain.cost.hardware.bitfusion import BitFusion
from fractrain.cost.hardware.tiling import BestTiling, FusedArray, Problem, best_tiling, products_per_cycle
from fractrain.models import registry
from fractrain.models.layer_shapes import layer_shapes
from fractrain.util.errors import ConfigError

REFERENCE = json.loads((Path(__file__).parent / "bitfusion_reference.json").read_text(encoding="utf-8"))
MACHINE = BitFusion().machine


def problem_of(row: dict[str, Any]) -> Problem:
    k, s, o = ((row[name], row[name]) for name in "KSO")
    return Problem(k, s, o, row["IC"], row["OC"], row["B"], row["act_bits"], row["wgt_bits"], row["im2col"])


def test_the_reference_is_whole_and_its_array_is_the_default() -> None:
    assert len(REFERENCE["rows"]) == 369
    config = REFERENCE["config"]
    assert (MACHINE.rows, MACHINE.columns, MACHINE.bus) == (config["N"], config["M"], config["if_width_bits_per_cycle"])
    sizes = [8 * config[name] for name in ("WBUF_bytes", "IBUF_bytes", "OBUF_bytes")]
    assert [MACHINE.weight_bits, MACHINE.input_bits, MACHINE.output_bits] == sizes
    assert create("bitfusion:eyeriss-matched").settings == BitFusion().settings
    assert create("bitfusion:16x16").machine.core == pytest.approx(MACHINE.core / 2)


def test_all_369_products() -> None:
    for row in REFERENCE["rows"]:
        found, energy = best_tiling(problem_of(row), MACHINE), row["energy_nj"]
        assert found is not None
        where = f"{row['network']} {row['layer']} {row.get('product', 'FW')}"
        assert (found.cycles, found.stalls) == (row["cycles"], row["stall_cycles"]), where
        for part in ("core", "sram", "dram"):
            assert getattr(found, part) == pytest.approx(energy[part], rel=1e-9), where
        assert found.core + found.sram + found.dram == pytest.approx(energy["total"], rel=1e-9), where


def slow(p: Problem, m: FusedArray) -> BestTiling | None:
    """The same search, one tiling and order after the other, in plain Python."""

    def sides(n: int, unit: int = 1) -> list[int]:
        return [unit * 2**k for k in range(40) if unit * 2**k < n] + [n]

    split, turns = products_per_cycle(p.bits1, p.bits2)
    taps, wide, best = p.kernel[0] * p.kernel[1], m.rows * split, None
    squares = [(min(s, p.out_size[0]), min(s, p.out_size[1])) for s in sides(max(p.out_size))]
    for b, (r, c), i, o in itertools.product(sides(p.batch), squares, sides(p.reduced), sides(p.produced, m.columns)):
        height, width = (k + (n - 1) * s for k, n, s in zip(p.kernel, (r, c), p.stride, strict=True))
        tile = {
            "w": -(-taps * i // wide) * wide * o * p.bits2,
            "a": (r * c * taps if p.unrolled else height * width) * i * b * p.bits1,
            "o": r * c * -(-o // m.columns) * m.columns * b * m.sum_bits,
        }
        half = {"w": m.weight_bits // 2, "a": m.input_bits // 2, "o": m.output_bits // 2}
        if any(tile[t] > half[t] for t in tile):
            continue
        turn = {"B": -(-p.batch // b), "R": -(-p.out_size[0] // r), "C": -(-p.out_size[1] // c),
                "I": -(-p.reduced // i), "O": -(-p.produced // o)}  # fmt: skip
        n = turn["B"] * turn["R"] * turn["C"] * turn["I"] * turn["O"]
        steps = -(-taps * i // wide) if p.unrolled else taps * -(-i // wide)
        compute = n * b * r * c * -(-o // m.columns) * steps * turns
        for order in itertools.permutations("BRCIO"):
            moved, fill = {}, {}
            for t, walks in (("w", "IO"), ("a", "BRCI"), ("o", "BRCO")):
                size, kept, inside = tile[t], tile[t], True
                for loop in reversed(order):
                    if loop in walks:
                        size *= turn[loop]
                        inside = inside and size <= half[t]
                        kept = size if inside else kept
                    elif not inside:
                        size *= turn[loop]
                moved[t], fill[t] = size, kept
            dram = moved["w"] + moved["a"] + 2 * moved["o"]
            first, last = sum(fill.values()), fill["o"]
            stalls = max(0, -(-(dram - first - last) // m.bus) - compute) + -(-first // m.bus) + -(-last // m.bus)
            made = n * b * r * c * o
            sram = made * i * taps * (p.bits2 * m.read[0] + p.bits1 * m.read[1]) + moved["w"] * m.write[0]
            sram += moved["a"] * m.write[1] + (moved["o"] + made * m.sum_bits) * (m.read[2] + m.write[2])
            found = BestTiling(compute + stalls, stalls, compute * m.core, sram, dram * m.dram)
            key = (found.cycles, found.core + found.sram + found.dram)
            if best is None or key < best[0]:
                best = (key, found)
    return best[1] if best else None


@pytest.mark.parametrize("seed", range(12))
def test_the_search_finds_what_a_slow_one_finds(seed: int) -> None:
    """On shapes, also oblong ones, arrays and widths that the reference has not."""
    r = random.Random(seed)
    kernel, stride = (r.choice((1, 3, 5)), r.choice((1, 3))), (r.choice((1, 2)), r.choice((1, 2)))
    size, channels, bits = (tuple(r.randint(1, most) for _ in range(2)) for most in (9, 70, 32))
    p = Problem(kernel, stride, size, *channels, r.randint(1, 9), *bits, r.random() < 0.3)
    m = replace(
        MACHINE, rows=r.choice((4, 16)), columns=r.choice((8, 32)), bus=r.choice((7, 192)),
        weight_bits=r.choice((1 << 15, 1 << 19)), input_bits=1 << 17, output_bits=1 << 16,
    )  # fmt: skip
    found, wanted = best_tiling(p, m), slow(p, m)
    assert (found is None) == (wanted is None)
    if found is not None and wanted is not None:
        assert (found.cycles, found.stalls) == (wanted.cycles, wanted.stalls)
        assert (found.core, found.sram, found.dram) == pytest.approx((wanted.core, wanted.sram, wanted.dram), rel=1e-12)


RESNET38 = layer_shapes(lambda: registry.build("resnet38", 10, (3, 32, 32)), (3, 32, 32))
RESNET18 = layer_shapes(lambda: registry.build("resnet18", 1000, (3, 224, 224)), (3, 224, 224))
LAYERS = {
    "stem": "stem.0", "g1": "groups.0.0.conv1", "g2.first": "groups.1.0.conv1", "g2": "groups.1.0.conv2",
    "g3.first": "groups.2.0.conv1", "g3": "groups.2.0.conv2", "fc": "head", "g2.shortcut": "groups.1.0.shortcut.0",
    "g3.shortcut": "groups.2.0.shortcut.0",
}  # fmt: skip


def test_products_of_resnet38_are_mapped_as_in_the_reference() -> None:
    """All three, strides, the unrolled stem and the classifier."""
    seen = set()
    for row in REFERENCE["rows"]:
        if row["network"] != "ResNet-38/CIFAR":
            continue
        name, product = LAYERS[row["layer"]], row["product"]
        shape = RESNET38[name]
        asked = WorkRow(name, product, row["act_bits"], row["wgt_bits"], 128 * shape.macs, shape, 128)
        assert BitFusion().problem(asked) == (problem_of(row), 1)
        seen.add((row["layer"], product))
    assert {product for _, product in seen} == {"FW", "EB", "GC"}
    assert {layer for layer, _ in seen} == set(LAYERS)


def per_image(name: str, shapes: dict[str, LayerShape], bits: int, batch: int, stem: int = 8) -> tuple[float, float]:
    """Milliseconds and millijoules of training on one image, every layer at one width but the first."""
    model, time, energy = create(name), 0.0, 0.0
    for layer, shape in shapes.items():
        width = stem if shape.first else bits
        products: tuple[Product, ...] = ("FW", "GC") if shape.first else ("FW", "EB", "GC")
        for product in products:
            cost = model.row(WorkRow(layer, product, width, width, shape.macs, shape, batch))
            time, energy = time + 1e3 * cost.seconds.total, energy + 1e3 * cost.joules.total
    return time, energy


@pytest.mark.parametrize(
    ("name", "at8", "gain"),
    [
        ("bitfusion", (1.487, 2.32), (1.70, 1.68)),
        ("bitfusion:16x16", (1.969, 2.75), (2.23, 2.69)),
        ("bitfusion:16x16:bus=4096", None, (2.38, 4.18)),
    ],
)
def test_resnet38_at_eight_and_at_two_bits(
    name: str, at8: tuple[float, float] | None, gain: tuple[float, float]
) -> None:
    """Figures found by running, batch 128."""
    eight, two = per_image(name, RESNET38, 8, 128), per_image(name, RESNET38, 2, 128)
    if at8:
        assert eight == pytest.approx(at8, rel=2e-3)
    assert (eight[0] / two[0], eight[1] / two[1]) == pytest.approx(gain, rel=5e-3)


@pytest.mark.parametrize(
    ("name", "bits", "gain"),
    [
        ("bitfusion", 2, (4.03, 3.53)), ("bitfusion:bus=4096", 2, (6.58, 7.22)), ("bitfusion", 4, (2.76, 2.35)),
    ],
)  # fmt: skip
def test_resnet18_against_eight_bits(name: str, bits: int, gain: tuple[float, float]) -> None:
    eight, few = per_image(name, RESNET18, 8, 16), per_image(name, RESNET18, bits, 16)
    assert (eight[0] / few[0], eight[1] / few[1]) == pytest.approx(gain, rel=5e-3)


def cost_of(shape: LayerShape, product: Product, batch: int = 4, bits: tuple[int, int] = (4, 8)) -> float:
    return create("bitfusion").row(WorkRow("layer", product, *bits, batch * shape.macs, shape, batch)).cycles


@pytest.mark.parametrize("product", ["FW", "EB", "GC"])
def test_groups_run_one_after_the_other(product: Product) -> None:
    one = LayerShape("conv", 8, 16, (3, 3), (1, 1), (12, 12), (12, 12))
    four = LayerShape("conv", 32, 64, (3, 3), (1, 1), (12, 12), (12, 12), groups=4)
    depthwise = LayerShape("conv", 24, 24, (3, 3), (2, 2), (12, 12), (6, 6), groups=24)
    single = LayerShape("conv", 1, 1, (3, 3), (2, 2), (12, 12), (6, 6))
    assert cost_of(four, product) == 4 * cost_of(one, product)
    assert cost_of(depthwise, product) == 24 * cost_of(single, product)


@pytest.mark.parametrize(("product", "size"), [("FW", (64, 32, 16)), ("EB", (32, 64, 16)), ("GC", (16, 32, 64))])
def test_attention_runs_sample_by_sample_and_head_by_head(product: Product, size: tuple[int, int, int]) -> None:
    heads = LayerShape("matmul", 8 * 64, 8 * 32, in_size=(16, 1), out_size=(16, 1), groups=8)
    reduced, made, vectors = size
    found = best_tiling(Problem((1, 1), (1, 1), (1, 1), reduced, made, vectors, 4, 8), MACHINE)
    assert found is not None
    assert cost_of(heads, product) == 4 * 8 * found.cycles


def test_linear_layers_take_all_vectors_of_a_batch_at_once() -> None:
    words = LayerShape("linear", 64, 96, in_size=(16, 1), out_size=(16, 1))
    for product in ("FW", "EB", "GC"):
        assert cost_of(words, product, batch=4) == cost_of(LayerShape("linear", 64, 96), product, batch=64)


def test_a_share_of_a_batch_costs_its_share() -> None:
    shape, model = RESNET38["groups.0.0.conv1"], create("bitfusion")
    full = model.row(WorkRow("l", "FW", 4, 4, 128 * shape.macs, shape, 128))
    part = model.row(WorkRow("l", "FW", 4, 4, 37.5 * shape.macs, shape, 128))
    assert part.figures() == pytest.approx(full.times(37.5 / 128).figures())


def test_what_units_make_in_a_cycle() -> None:
    assert {(a, b): products_per_cycle(a, b) for a, b in [(8, 8), (5, 8), (4, 8), (4, 3), (2, 8), (2, 2), (1, 1)]} == {
        (8, 8): (1, 1), (5, 8): (1, 1), (4, 8): (2, 1), (4, 3): (4, 1), (2, 8): (4, 1), (2, 2): (16, 1),
        (1, 1): (16, 1),
    }  # fmt: skip
    assert [
        products_per_cycle(12, 4),
        products_per_cycle(16, 8),
        products_per_cycle(16, 16),
        products_per_cycle(9, 2),
    ] == [(2, 2), (1, 2), (1, 4), (4, 2)]


def test_floating_point_is_counted_at_the_widest_width() -> None:
    shape = RESNET38["groups.0.0.conv1"]
    rows = [WorkRow("l", "FW", bits, bits, shape.macs, shape, 128) for bits in (32, 16, 8)]
    model = create("bitfusion")
    assert model.row(rows[0]) == model.row(rows[1])
    assert create("bitfusion:widest=8").row(rows[0]) == model.row(rows[2])


def test_an_array_without_room_is_one_line() -> None:
    shape = LayerShape("conv", 1, 1, (101, 101), (1, 1), (200, 200), (100, 100))
    with pytest.raises(ConfigError, match="not even the smallest tile fits"):
        create("bitfusion:weight_kb=1").row(WorkRow("l", "FW", 8, 8, 1.0, shape, 1))
    for wrong in ("rows=0", "bus=0", "input_kb=-1", "frequency_hz=0", "widest=33", "columns=5000"):
        with pytest.raises(ConfigError, match=wrong.split("=")[0]):
            create(f"bitfusion:{wrong}")
