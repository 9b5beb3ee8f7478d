from __future__ import annotations

import pytest
from engine_fakes import fake_config
from kill_helper import killed_and_straight

from fractrain.engine.store import RunStore

FAKE = "engine_fakes:FakeRegistries"
SAME = ("weights_sha256", "ledger_sha256", "test_accuracy_last", "test_accuracy_best", "train_loss", "iterations", "cost")


@pytest.mark.parametrize(("checkpoint_seconds", "seed"), [(0.0, 1), (0.02, 2)])
def test_killed_again_and_again_gives_the_same_bits(tmp_path, checkpoint_seconds, seed):
    config = fake_config(iterations=40, eval_every=7)
    killed, straight, kills = killed_and_straight(
        config, tmp_path, kills=6, seed=seed, registries=FAKE, checkpoint_seconds=checkpoint_seconds
    )
    assert kills >= 3
    assert {key: killed[key] for key in SAME} == {key: straight[key] for key in SAME}
    lines = [RunStore(tmp_path / name).get(config.run_id).metrics() for name in ("killed", "straight")]
    for line in (*lines[0], *lines[1]):
        del line["seconds"], line["step_seconds"]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 6
