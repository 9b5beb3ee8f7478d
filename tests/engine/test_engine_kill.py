from __future__ import annotations

from engine_fakes import fake_config
from kill_helper import kill_server

from fractrain.engine.store import RunStore
from fractrain.testing.subject import TIMES

__all__ = ["kill_server"]  # fixture

SAME = (
    "weights_sha256",
    "ledger_sha256",
    "test_accuracy_last",
    "test_accuracy_best",
    "train_loss",
    "iterations",
    "cost",
)


def test_killed_again_and_again_gives_the_same_bits(kill_server, tmp_path):
    config = fake_config(iterations=24, eval_every=5)
    killed, straight, kills = kill_server.killed_and_straight(
        config, tmp_path, kills=6, seed=1, registries="engine_fakes:FakeRegistries"
    )
    assert kills >= 3
    assert {key: killed[key] for key in SAME} == {key: straight[key] for key in SAME}
    lines = [RunStore(tmp_path / name).get(config.run_id).metrics() for name in ("killed", "straight")]
    for line in (*lines[0], *lines[1]):
        for key in TIMES:
            line.pop(key, None)
    assert lines[0] == lines[1]
    assert len(lines[0]) == 5
