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

from fractrain.kernels.cuda import triton_blocks, triton_quantize
from fractrain.kernels.cuda.launch import EXACT

FLOAT, INT = "*fp32", "i32"
PARAMS = ("scale", "offset", "qmin", "qmax")
GRID = {f"{p}_ptr": FLOAT for p in PARAMS} | {f"{p}_step": INT for p in PARAMS}
SIZES = {"columns": INT, "parts": INT}
WALK = dict.fromkeys(("count", "rows", "columns", "high", "width", "bands", "across"), INT)
E4M3 = {"MANTISSA": 3, "LOWEST": 121 << 23, "SIGN": 7, "NAN": 127, "BLOCK": 1024}
E2M1 = {"MANTISSA": 1, "LOWEST": 127 << 23, "SIGN": 3, "NAN": 7, "BLOCK": 1024}
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
    ("round_blocks", {"codes_ptr": "*u8"}, E4M3 | {"STOCHASTIC": False, "KEYS": False, "CODES": True, "PAIRS": False}),
    ("round_blocks", {"codes_ptr": "*u8"}, E2M1 | {"STOCHASTIC": True, "KEYS": True, "CODES": True, "PAIRS": True}),
    ("restore_blocks", {"codes_ptr": "*u8"}, {"PAIRS": True, "BLOCK": 1024}),
]  # fmt: skip
COMMON = GRID | SIZES | {"x_ptr": FLOAT, "values_ptr": FLOAT, "shift": "fp32", "k0": INT, "k1": INT, "base": INT,
                        "k0_ptr": "*i64", "k1_ptr": "*i64", "to_ptr": FLOAT, "back_ptr": FLOAT, "table_ptr": FLOAT,
                        "largest": "fp32", "unit": "fp32"} | WALK  # fmt: skip


def build(name: str, types: dict[str, str], constants: dict[str, object], arch: int) -> dict[str, object]:
    fn = getattr(triton_blocks if name.endswith("_blocks") else triton_quantize, name)
    types = {n: "constexpr" if n in constants else (COMMON | types)[n] for n in fn.arg_names}
    places = {(fn.arg_names.index(n),): v for n, v in constants.items()}
    source = ASTSource(fn=fn, signature=types, constexprs=places)
    asm = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(EXACT)).asm
    ops = set(re.findall(r"\b[a-z]+(?:\.\w+)*\.(?:f32|f64)(?:\.\w+)?\b", asm["ptx"]))
    return {"kernel": name, "arch": arch, "float_ops": sorted(ops), "bytes": len(asm["cubin"])}


if __name__ == "__main__":
    json.dump([build(*b, arch) for arch in map(int, sys.argv[1:]) for b in BUILDS], sys.stdout)
