"""roofline by hand: peaks and bandwidth of data sheets, the next format that has hardware, operands moved once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fractrain.cost.hardware import LayerShape, Product, WorkRow, create
from fractrain.cost.hardware.roofline import SHEETS, Roofline
from fractrain.util.errors import ConfigError

WIDE = LayerShape("conv", 512, 512, (3, 3), (1, 1), (28, 28), (28, 28))  # bound by computing
THIN = LayerShape("conv", 16, 32, (1, 1), (2, 2), (32, 32), (16, 16))  # bound by memory


def row(shape: LayerShape, product: Product, a: int, b: int, samples: int = 64, batch: int = 64) -> WorkRow:
    return WorkRow("layer", product, a, b, samples * shape.macs, shape, batch)


@pytest.mark.parametrize(
    ("name", "bits", "peak"),
    [
        ("roofline:a100", 2, 1248), ("roofline:a100", 4, 1248), ("roofline:a100", 5, 624), ("roofline:a100", 8, 624),
        ("roofline:a100", 12, 312), ("roofline:a100", 32, 156), ("roofline:a100:full=fp32", 32, 19.5),
        ("roofline", 2, 1978.9), ("roofline:h100", 8, 1978.9), ("roofline:b200", 4, 4500), ("roofline:b200", 6, 4500),
        ("roofline:b200", 17, 1100), ("roofline:int8=0:fp8=0", 8, 989.4),
        ("roofline:int8=0:fp8=0:bf16=0:full=fp32", 8, 66.9),
    ],
)  # fmt: skip
def test_a_width_without_hardware_runs_at_the_next_that_has_it(name: str, bits: int, peak: float) -> None:
    model = create(name)
    assert model.format_of(row(WIDE, "FW", bits, bits))[2] == peak
    for product in ("FW", "EB", "GC"):
        cost = model.row(row(WIDE, product, bits, 2))
        assert cost.seconds.compute == pytest.approx(2 * 64 * WIDE.macs / (peak * 1e12))
        assert model.row(row(WIDE, product, 2, bits)).seconds.compute == cost.seconds.compute


@pytest.mark.parametrize(
    ("bits", "formats", "name"),
    [
        ((4, 4), ("e2m1/e4m3", "e2m1/e4m3"), "fp4"), ((4, 8), ("e2m1/e8m0", "e5m2"), "fp8"), ((4, 4), ("", ""), "int8"),
        ((8, 8), ("int8/float32", ""), "int8"), ((8, 8), ("e4m3", ""), "bf16"), ((4, 32), ("e2m1", ""), "tf32"),
    ],
)  # fmt: skip
def test_grids_run_as_integers_and_floats_as_floats(bits: tuple[int, int], formats: tuple[str, str], name: str) -> None:
    asked = WorkRow("layer", "FW", *bits, 1.0, WIDE, 1, None, formats)
    assert create("roofline:b200").format_of(asked)[0] == name


def test_scales_are_moved_with_their_elements() -> None:
    plain, scaled = row(THIN, "FW", 8, 8), replace(row(THIN, "FW", 8, 8), scales=(0.5, 0.0))
    more = create("roofline").row(scaled).seconds.total - create("roofline").row(plain).seconds.total
    assert more == pytest.approx(64 * 16 * 32 * 32 * 0.5 / 8 / 3350e9)


@pytest.mark.parametrize(
    ("product", "moved", "made"),
    [
        ("FW", 64 * 16 * 32 * 32 + 16 * 32, 64 * 32 * 16 * 16),
        ("EB", 64 * 32 * 16 * 16 + 16 * 32, 64 * 16 * 32 * 32),
        ("GC", 64 * (16 * 32 * 32 + 32 * 16 * 16), 16 * 32),
    ],
)
def test_memory_moves_operands_and_results_once(product: Product, moved: int, made: int) -> None:
    memory = (moved * 1 + made * 2) / 3350e9  # bytes: 8-bit operands, 16-bit results
    compute = 2 * 64 * THIN.macs / 1978.9e12
    cost = create("roofline").row(row(THIN, product, 6, 8))
    assert cost.seconds.total == pytest.approx(max(memory, compute))
    assert cost.seconds.dram == pytest.approx(memory - compute)
    assert cost.joules.total == pytest.approx(700 * cost.seconds.total)
    assert create("roofline:efficiency=0.5").row(row(THIN, product, 6, 8)).seconds.total == pytest.approx(2 * memory)


def test_attention_has_a_second_operand_for_each_sample() -> None:
    heads = LayerShape("matmul", 8 * 64, 8 * 128, in_size=(128, 1), out_size=(128, 1), groups=8)
    cost = create("roofline").row(row(heads, "FW", 8, 8, 4, 4))
    data = 4 * 8 * (128 * 64 + 64 * 128 + 2 * 128 * 128)
    assert cost.seconds.total == pytest.approx(data / 3350e9)


def test_sheets_name_only_settings_and_the_default_is_one_of_them() -> None:
    for values in SHEETS.values():
        assert values.keys() <= Roofline.Settings.model_fields.keys()
    assert create("roofline:h100").settings == Roofline().settings


@pytest.mark.parametrize("wrong", ["fp32=0", "bandwidth=0", "watts=-1", "efficiency=1.5", "result_bits=4", "full=bf16"])
def test_settings_out_of_range_are_one_line(wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong.split("=")[0]):
        create(f"roofline:{wrong}")
    with pytest.raises(ConfigError, match="full=tf32 needs a peak"):
        create("roofline:tf32=0")
