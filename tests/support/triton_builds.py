"""Run by test_quant_triton.py in a process of its own: compile the GPU's kernels for a real GPU; none is needed.

Prints one JSON object: for each build the assembler's floating-point instructions, and the size of the machine code.
"""

from __future__ import annotations

import json
import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fractrain.kernels.cuda import triton_quantize as triton_kernels
from fractrain.kernels.cuda.launch import EXACT

FLOAT, INT = "*fp32", "i32"
PARAMS = ("scale", "offset", "qmin", "qmax")
GRID = {f"{p}_ptr": FLOAT for p in PARAMS} | {f"{p}_step": INT for p in PARAMS}
SIZES = {"columns": INT, "parts": INT}
BUILDS = [
    ("extremes", {"x_ptr": FLOAT, "low_ptr": "*i32", "high_ptr": "*i32"}, {"STEPS": 8, "BLOCK": 1024}),
    ("finish", {"low_ptr": "*i32", "high_ptr": "*i32", "out_ptr": FLOAT, "bad_ptr": "*u8", "rows": INT, "top": "fp32",
                "smallest": "fp32"}, {"GRID": True, "SYMMETRIC": True, "BLOCK": 256}),
    ("quantize", {"codes_ptr": "*u8"}, {"STOCHASTIC": True, "CODES": True, "KEYS": False, "BLOCK": 1024}),
    ("quantize", {"codes_ptr": "*u8"}, {"STOCHASTIC": True, "CODES": True, "KEYS": True, "BLOCK": 1024}),
    ("quantize", {"codes_ptr": "*i16"}, {"STOCHASTIC": False, "CODES": True, "KEYS": False, "BLOCK": 256}),
    ("dequantize", {"codes_ptr": "*i16"}, {"BLOCK": 1024}),
    ("rescale", {"sums_ptr": "*i32", "out_ptr": FLOAT, "add_rows_ptr": "*i32", "add_columns_ptr": "*i32",
                 "of_rows_ptr": FLOAT, "by_columns_ptr": FLOAT, "of_columns_ptr": FLOAT}, {"BLOCK": 1024}),
]  # fmt: skip
COMMON = GRID | SIZES | {"x_ptr": FLOAT, "values_ptr": FLOAT, "shift": "fp32", "k0": INT, "k1": INT, "base": INT,
                        "k0_ptr": "*i64", "k1_ptr": "*i64"}  # fmt: skip


def build(name: str, types: dict[str, str], constants: dict[str, object], arch: int) -> dict[str, object]:
    fn = getattr(triton_kernels, name)
    types = {n: "constexpr" if n in constants else (COMMON | types)[n] for n in fn.arg_names}
    places = {(fn.arg_names.index(n),): v for n, v in constants.items()}
    source = ASTSource(fn=fn, signature=types, constexprs=places)
    asm = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(EXACT)).asm
    ops = set(re.findall(r"\b[a-z]+(?:\.\w+)*\.(?:f32|f64)(?:\.\w+)?\b", asm["ptx"]))
    return {"kernel": name, "arch": arch, "float_ops": sorted(ops), "bytes": len(asm["cubin"])}


if __name__ == "__main__":
    json.dump([build(*b, arch) for arch in map(int, sys.argv[1:]) for b in BUILDS], sys.stdout)
