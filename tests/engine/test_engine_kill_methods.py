"""Methods killed with SIGKILL at random steps: final weights and ledger are bit-identical.

The second kill comes in the second half, with a checkpoint at every step: what a method has learnt by then is needed.
"""

from __future__ import annotations

import pytest
from kill_helper import kill_server

from fractrain.engine.config import RunConfig
from fractrain.kernels.cpu import cpu_features as capability
from fractrain.kernels.cpu.int8 import runs_on_int8
from fractrain.kernels.cpu.int8_backward import Plan, possible
from fractrain.kernels.geometry import Geometry
from fractrain.methods.registry import names

__all__ = ["kill_server"]  # fixture

# Stages must move within the few steps of the test, otherwise their state could be lost without a trace.
QUICK_STAGES = {"window": 2, "epsilon": 10.0, "scale_epochs": 1}
FRACTRAIN = {**QUICK_STAGES, "target_step": 50.0}  # so far apart that the pull on the gates turns round with the stage
SETTINGS = {"pfq": QUICK_STAGES, "fractrain": FRACTRAIN, "fp8": {"recipe": "delayed"}}
MORE = [("sbm", {"variant": "banner"}), ("fractrain", {**FRACTRAIN, "forward": "authors"})]
# Nothing to restore but weights, momentum and the step: as of sbm; the contract's `resume` holds each to it.
STATELESS = {"static", "mx", "nvfp4", "luq", "jetfire", "switchback", "int8_rowwise"}
CASES = [(n, SETTINGS.get(n, {})) for n in names() if n not in STATELESS]


@pytest.mark.parametrize(("method", "settings"), CASES + MORE)
def test_a_killed_run_ends_with_the_same_bits(kill_server, method, settings, tmp_path):
    config = RunConfig.create(
        method=method, model="resnet38", dataset="digits", settings=settings,
        recipe={"iterations": 9, "batch_size": 60, "eval_every": 3, "val_fraction": 0.0, "milestones": [5]},
    )  # fmt: skip
    killed, straight, kills = kill_server.killed_and_straight(
        config, tmp_path, kills=2, seed=3, checkpoint_seconds=(0.3, 0.0), registries="small_registries:SmallRegistries"
    )
    same(killed, straight, kills)


@pytest.mark.parametrize("method", ["static8", "fractrain"])
def test_a_killed_run_whose_products_are_of_integers_ends_with_the_same_bits(kill_server, method, tmp_path):
    """Digits of 8x8 are too small for the integer paths, those of 32x32 are not (if the processor has such paths)."""
    config = RunConfig.create(
        method=method, model="resnet18", dataset="digits32", settings=SETTINGS.get(method, {}),
        recipe={"iterations": 7, "batch_size": 16, "eval_every": 3, "val_fraction": 0.0, "milestones": [5]},
    )  # fmt: skip
    geometry = Geometry((16, 32, 32), 16, (3, 3), (1, 1), (1, 1))  # of most layers of the small model
    if capability.byte_products():
        assert runs_on_int8(geometry)
        assert possible(geometry) == Plan(geometry, True, True)
    killed, straight, kills = kill_server.killed_and_straight(
        config, tmp_path, kills=2, seed=3, checkpoint_seconds=(0.3, 0.0), registries="small_registries:SmallRegistries"
    )
    same(killed, straight, kills)


def same(killed, straight, kills):
    assert kills >= 1
    for key in ("weights_sha256", "ledger_sha256", "test_accuracy_last", "train_loss"):
        assert killed[key] == straight[key], key
