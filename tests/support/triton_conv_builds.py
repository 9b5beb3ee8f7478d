"""Run by test_quant_int8_conv.py in a process of its own: compile the int8 convolutions for a real GPU; none is needed.

Builds what a step of some layers would launch. Prints one JSON object: for each build its kernel, the assembler's
products, whether it adds by atomic operations, and what a thread keeps outside of registers.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fractrain.experimental import triton_conv
from fractrain.experimental.int8_conv import ConvLauncher
from fractrain.kernels.geometry import Geometry
from fractrain.numerics.backend import Quantized
from fractrain.numerics.grid import Grid

OPTIONS = ("num_warps", "enable_fp_fusion")
TYPES = {torch.uint8: "u8", torch.int8: "i8", torch.int32: "i32", torch.float32: "fp32"}
LAYERS = [
    (128, Geometry((128, 4, 4), 128, (3, 3), (1, 1), (1, 1))),  # whole tiles
    (64, Geometry((16, 8, 8), 32, (3, 3), (2, 2), (1, 1))),
]


class Noted:
    """Stands for the module of the kernels: notes what would be launched."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        class Launch:
            def __getitem__(_, programs: tuple[int, ...]) -> Any:
                return lambda **args: self.launches.append((name, args))

        return Launch()


def plain(*shape: int) -> Quantized:
    return Quantized(torch.zeros(shape, dtype=torch.uint8), Grid(*torch.zeros(4)))


def launches() -> list[tuple[str, dict[str, Any]]]:
    module = Noted()
    launcher = ConvLauncher(module)
    for count, g in LAYERS:
        e, a, w = plain(count, g.filters, *g.output), plain(count, *g.image), plain(g.filters, g.image[0], *g.kernel)
        launcher.convolve(a, w, torch.zeros(g.filters), g)
        launcher.convolve(e, w, None, g, back=True)
        launcher.correlate(e, a, g)
    return module.launches


def build(name: str, args: dict[str, Any], arch: int) -> dict[str, Any]:
    fn, types, constants, whole = getattr(triton_conv, name), {}, {}, {}
    assert set(args) - set(OPTIONS) == set(fn.arg_names)
    for place, parameter in enumerate(fn.params):
        value = args[parameter.name]
        if isinstance(value, torch.Tensor):
            types[parameter.name] = f"*{TYPES[value.dtype]}"
        elif parameter.is_constexpr or value == 1:  # a launch makes 1 a constant
            types[parameter.name], constants[(place,)] = "constexpr", value
            continue
        else:
            types[parameter.name] = "i32"
        if isinstance(value, torch.Tensor) or value % 16 == 0:  # as a launch finds out
            whole[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=fn, signature=types, constexprs=constants, attrs=whole)
    options = {o: args[o] for o in OPTIONS if o in args}
    asm = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm
    ptx = asm["ptx"]
    return {
        "kernel": name, "arch": arch, "products": sorted(set(re.findall(r"\bw?g?mma\.[\w.]*s32[\w.]*", ptx))),
        "atomics": sorted(set(re.findall(r"\b(?:atom|red)\.[\w.]+", ptx))), "stack": stack(asm["cubin"]),
    }  # fmt: skip


def stack(cubin: bytes) -> int | None:
    """Bytes per thread beside registers; None where Triton brings no tool to tell."""
    tool = Path(triton.__path__[0]) / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        return None
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        told = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return max(int(n) for n in re.findall(r"STACK:(\d+)", told))


if __name__ == "__main__":
    json.dump([build(*launch, arch) for arch in map(int, sys.argv[1:]) for launch in launches()], sys.stdout)
