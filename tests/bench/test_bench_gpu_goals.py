"""``benchmarks/speed/gpu_goals.py`` at its smallest on the CPU: that it runs, and measures what it says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from fractrain.engine.registries import Registries
from fractrain.layers.conv_linear import QuantLayer

SCRIPT = Path(__file__).parents[2] / "benchmarks/speed/gpu_goals.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_goals", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_of_it_runs(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(out.read_text())
    assert found["quick"] is True
    (beside,) = found["against_bf16"]
    assert beside["spread"][0] <= beside["ratio"] <= beside["spread"][1]
    for run in found["paper_run"]:
        assert run["iterations"] == 64_000
        assert run["minutes"] == pytest.approx(run["step_s"] * 64_000 / 60)
    together = found["side_by_side"]
    for run in together["runs"]:
        assert run["throughput"] == pytest.approx(run["steps_per_s"] / together["alone_steps_per_s"])
        assert run["steps_per_s"] > 0


def test_bf16_steps_multiply_in_bf16_and_learn_in_float32() -> None:
    device = torch.device("cpu")
    module = script()
    loop = module.loop_of("fp32", module.QUICK, device, bf16=True)
    kinds: set[torch.dtype] = set()
    for layer in loop.model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | QuantLayer):
            layer.register_forward_hook(lambda _, __, y: kinds.add(y.dtype))
    before = [p.detach().clone() for p in loop.model.parameters()]
    loop.advance()
    assert kinds == {torch.bfloat16}
    after = list(loop.model.parameters())
    assert all(p.dtype == torch.float32 for p in after)
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    plain = module.RandomRegistries(Registries()).model("resnet38", "cifar10", 0)
    assert all(torch.equal(a, b) for a, b in zip(before, plain.parameters(), strict=False))  # the same model


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_line_says_so() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("no CUDA device here; --device cpu --quick only tries the script")
