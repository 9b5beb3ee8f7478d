from __future__ import annotations

from types import SimpleNamespace

from fractrain.engine.throughput import Replaced, Throughput
from fractrain.testing.subject import TIMES


def test_pace():
    stream = SimpleNamespace(waited_s=5.0)
    throughput = Throughput(stream)
    assert throughput.line("images") == {"step_seconds": None, "images_per_second": None, "wait_share": None}
    throughput.step_seconds, throughput.answers, stream.waited_s = [1.0, 2.0, 5.0], 160, 7.0
    assert throughput.line("images") == {"step_seconds": 2.0, "images_per_second": 20.0, "wait_share": 0.25}
    assert set(throughput.line("words")) == {"step_seconds", "words_per_second", "wait_share"} <= set(TIMES)
    memory = Throughput(object())
    memory.step_seconds, memory.answers = [2.0], 10
    assert memory.line("images")["wait_share"] == 0.0


def test_replaced_adds_up_over_streams_and_starts():
    replaced = Replaced([SimpleNamespace(bad_images={"b": "2"}), object(), SimpleNamespace(bad_images={"a": "1"})])
    replaced.before = {"c": "3"}
    assert list(replaced.images.items()) == [("a", "1"), ("b", "2"), ("c", "3")]
