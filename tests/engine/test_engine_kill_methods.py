"""Every method in the registry, killed with SIGKILL at random steps: final weights and ledger are bit-identical."""

from __future__ import annotations

import pytest
from kill_helper import killed_and_straight

from fractrain.engine.config import RunConfig
from fractrain.methods.registry import names

# Stages must move within the few steps of the test, otherwise their state could be lost without a trace.
QUICK_STAGES = {"window": 2, "epsilon": 10.0, "scale_epochs": 1}
SETTINGS = {"pfq": QUICK_STAGES, "fractrain": QUICK_STAGES}
MORE = [("sbm", {"variant": "banner"}), ("fractrain", {**QUICK_STAGES, "compat": "authors"})]


@pytest.mark.parametrize(("method", "settings"), [(n, SETTINGS.get(n, {})) for n in names()] + MORE)
def test_a_killed_run_ends_with_the_same_bits(method, settings, tmp_path):
    config = RunConfig.create(
        method=method, model="resnet38", dataset="digits", settings=settings,
        recipe={"iterations": 9, "batch_size": 60, "eval_every": 3, "val_fraction": 0.0, "milestones": [5]},
    )  # fmt: skip
    killed, straight, kills = killed_and_straight(
        config, tmp_path, kills=2, seed=3, checkpoint_seconds=(0.0, 0.3), registries="small_registries:SmallRegistries"
    )
    assert kills >= 1
    for key in ("weights_sha256", "ledger_sha256", "test_accuracy_last", "train_loss"):
        assert killed[key] == straight[key], key
