"""Training steps by other libraries' emulation, timed beside ours: the optional extra ``peers``.

On ResNet-38 every convolution but the first is the library's, as ours are; weights are not copied, because only the
time is compared. torchao's emulation is for linear layers alone, so one such layer is timed, ours beside it. A library
that is not installed is a row without figures that says so.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fractrain.bench.catalog import MICROXCALING
from fractrain.bench.subject import PlainStep, Setup
from fractrain.bench.timing import Measurement, Tick, paired, ratios
from fractrain.layers.conv_linear import QuantLinear
from fractrain.layers.kept import kept_bytes
from fractrain.numerics.elements import E4M3, E5M2
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.scaled import Scaled

BITS = 8
FEATURES, OUTPUTS, ROWS = 512, 2048, 16  # of the linear layer; rows per sample of the bench
MX_BLOCK = 32


class Missing(Exception):
    """A peer is not here; the message says why."""


def measure_library(name: str, setup: Setup, tick: Tick, warmup: int) -> Measurement:
    """Time a row of the catalog against FP32.

    Args:
        setup: model, data and threads.
        tick: called after every round.
        warmup: rounds that do not count.

    Returns:
        The measurement; ``missing`` says why there is none where the library is absent.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs
            note, path, base = _steps(name, setup)
            own, plain = paired(path, base, setup.device, setup.repeats, tick, warmup)
            kept = (kept_bytes(path, path.model), kept_bytes(base, base.model))
    except Missing as reason:
        return Measurement(missing=f"not run: {reason}")
    return Measurement(ratios(own, plain), own, plain, note=note, kept=kept)


def _steps(name: str, setup: Setup) -> tuple[str, PlainStep | LinearStep, PlainStep | LinearStep]:
    """The library and its version, its step, and FP32's."""
    if name in LINEAR:
        change, said = LINEAR[name]
        return said(), LinearStep(setup, change), LinearStep(setup)
    prepare, said = CONVOLUTIONS[name]
    note = said()
    return note, PlainStep(setup, model=converted(setup.plain(), prepare())), PlainStep(setup)


def converted(model: nn.Module, make: Callable[[nn.Conv2d], nn.Module]) -> nn.Module:
    """The model with every convolution but the first made anew."""
    convolutions = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    for name, conv in convolutions[1:]:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, make(conv))
    return model


class LinearStep:
    """Forward and backward pass of one linear layer.

    Args:
        setup: its batch decides how many rows there are.
        change: makes the layer low-precision; None leaves it.
    """

    def __init__(self, setup: Setup, change: Callable[[nn.Linear], nn.Module] | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        linear = nn.Linear(FEATURES, OUTPUTS, bias=False)
        self.model: nn.Module = (change(linear) if change else linear).to(setup.device)
        self.x = torch.randn(setup.batch * ROWS, FEATURES, generator=generator).to(setup.device).requires_grad_()
        self.error = torch.randn(setup.batch * ROWS, OUTPUTS, generator=generator).to(setup.device)

    def __call__(self) -> None:
        """Do both passes."""
        self.model.zero_grad(set_to_none=True)
        self.x.grad = None
        self.model(self.x).backward(self.error)


def _geometry(conv: nn.Conv2d) -> dict[str, Any]:
    """What every library's convolution takes alike."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups")
    return {**{name: getattr(conv, name) for name in names}, "bias": conv.bias is not None}


def _installed(package: str) -> str:
    """``package version``, or :class:`Missing`."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        raise Missing(f"{package} is not installed (pip install 'fractrain[peers]')") from None


def _brevitas() -> Callable[[nn.Conv2d], nn.Module]:
    from brevitas.nn import QuantConv2d
    from brevitas.quant import Int8ActPerTensorFloat

    def make(conv: nn.Conv2d) -> nn.Module:
        layer: nn.Module = QuantConv2d(
            **_geometry(conv), weight_bit_width=BITS, input_quant=Int8ActPerTensorFloat, return_quant_tensor=False
        )
        return layer

    return make


def _torch_ao() -> Callable[[nn.Conv2d], nn.Module]:
    from torch.ao.nn.qat import Conv2d
    from torch.ao.quantization import get_default_qat_qconfig

    config = get_default_qat_qconfig("fbgemm")  # type: ignore[no-untyped-call]

    def make(conv: nn.Conv2d) -> nn.Module:
        return nn.Sequential(config.activation(), Conv2d(**_geometry(conv), qconfig=config))

    return make


def _microxcaling(element: str) -> Callable[[], Callable[[nn.Conv2d], nn.Module]]:
    """Convolutions of the copy that the user points to, all three products in MX."""

    def prepare() -> Callable[[nn.Conv2d], nn.Module]:
        folder = os.environ[MICROXCALING]
        sys.path.insert(0, folder)
        try:
            from mx.convolution import Conv2d
            from mx.specs import finalize_mx_specs
        except ImportError as error:
            raise Missing(f"{MICROXCALING}={folder}: {error}") from error
        finally:
            sys.path.remove(folder)
        specs = finalize_mx_specs(
            {
                "w_elem_format": element, "a_elem_format": element, "scale_bits": 8, "block_size": MX_BLOCK,
                "bfloat": 0, "custom_cuda": False, "quantize_backprop": True,
            }
        )  # fmt: skip
        return lambda conv: Conv2d(**_geometry(conv), mx_specs=specs)

    return prepare


def _copy_of_microxcaling() -> str:
    folder = os.environ.get(MICROXCALING)
    if not folder:
        raise Missing(f"microxcaling is on no index; set {MICROXCALING} to the folder of a copy")
    if not (Path(folder) / "mx").is_dir():
        raise Missing(f"{MICROXCALING}={folder}: there is no package mx in it")
    return "microxcaling, the user's copy"


def _ours(linear: nn.Linear) -> nn.Module:
    a, e = (Operand.of(Scaled(element=element)) for element in (E4M3, E5M2))
    return QuantLinear(linear, Precision.of(a, a, e))


def _torchao(linear: nn.Linear) -> nn.Module:
    _installed("torchao")
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    model: nn.Module = convert_to_float8_training(nn.Sequential(linear), config=Float8LinearConfig(emulate=True))
    return model


LINEAR: Mapping[str, tuple[Callable[[nn.Linear], nn.Module], Callable[[], str]]] = {
    "fp8_linear": (_ours, lambda: ""),
    "peer_torchao_linear": (_torchao, lambda: _installed("torchao")),
}
CONVOLUTIONS: Mapping[str, tuple[Callable[[], Callable[[nn.Conv2d], nn.Module]], Callable[[], str]]] = {
    "peer_brevitas": (_brevitas, lambda: _installed("brevitas")),
    "peer_torch_ao": (_torch_ao, lambda: _installed("torch")),
    "peer_microxcaling_mxfp8": (_microxcaling("fp8_e4m3"), _copy_of_microxcaling),
    "peer_microxcaling_mxint8": (_microxcaling("int8"), _copy_of_microxcaling),
}
