"""What a model is trained to do, and the parts of a recipe that came with language models."""

from __future__ import annotations

import math
import os
import signal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engine_fakes import FakeRegistries
from torch import nn

from fractrain.data.info import DatasetInfo
from fractrain.data.registry import info as dataset_info
from fractrain.data.text import TextData
from fractrain.data.tokens import MemoryTokens
from fractrain.engine.config import RunConfig
from fractrain.engine.evaluate import evaluate
from fractrain.engine.recipes import Recipe, recipe_values
from fractrain.engine.schedule import learning_rate
from fractrain.engine.site import Site
from fractrain.engine.task import Classification, LanguageModel, task_of
from fractrain.engine.trainer import Trainer
from fractrain.methods.base import Method, MethodContext, MethodSettings
from fractrain.methods.optimizer import clip_gradients, make_optimizer
from fractrain.util.errors import ConfigError
from fractrain.util.seeds import derive_seed
from fractrain.util.signals import RunInterrupted

CPU = torch.device("cpu")
WORDS, CONTEXT = 11, 8


class Bigram(nn.Module):
    """The next word from this one, with a table and dropout; answers as a language model does."""

    input = "tokens"

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 8)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(8, WORDS)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.drop(self.table(x)))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        flat = nn.functional.cross_entropy(self.logits(x).flatten(0, 1), y.flatten(), reduction="none")
        return flat.view(y.shape)


class Plain(Method):
    """Does nothing."""

    name = "plain"

    class Settings(MethodSettings):
        pass

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        return model


class TextRegistries(FakeRegistries):
    """A text in which each word is nearly fixed by the one before."""

    def method_class(self, name: str) -> type[Method]:
        return Plain

    def method(self, name: str, settings: Any) -> Method:
        return Plain()

    def dataset_info(self, name: str) -> Any:
        return SimpleNamespace(
            name=name,
            classes=WORDS,
            shape=(CONTEXT,),
            stride=CONTEXT // 2,
            embedded=True,
            kind="text",
            recipe={},
        )

    def model(self, name: str, dataset: str, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "init"))
            return Bigram()

    def data(self, name: str, data_dir: Any, download: bool, val_fraction: float, seed: int) -> Any:
        draw = np.random.default_rng(0)

        def part(n: int) -> MemoryTokens:
            steps = np.where(draw.random(n) < 0.9, 3, draw.integers(0, WORDS, n))
            return MemoryTokens((np.cumsum(steps) % WORDS).astype(np.uint16))

        return TextData(self.dataset_info(name), part(2_000), part(200), part(300), "text")

    def train_stream(self, data: Any, batch_size: int, seed: int, device: Any, augment: bool) -> Any:
        return data.train_stream(batch_size, seed, device, augment)

    def eval_stream(self, data: Any, split: str, batch_size: int, device: Any) -> Any:
        return data.eval_stream(split, batch_size, device)


def text_config(**recipe: Any) -> RunConfig:
    values = {
        "iterations": 60, "batch_size": 8, "optimizer": "adam", "lr": 0.05, "weight_decay": 0.0, "clip_norm": 1.0,
        "schedule": "cosine", "warmup": 5, "eval_every": 20, "milestones": [], "val_fraction": 0.0,
    }  # fmt: skip
    return RunConfig.create(
        method="plain", model="bigram", dataset="docs_text", recipe={**values, **recipe}, registries=TextRegistries()
    )


# -- the tasks --------------------------------------------------------------------------------------------------------


def test_language_model_sums_against_explicit_log_softmax():
    torch.manual_seed(0)
    model = Bigram().eval()
    x, y = torch.randint(0, WORDS, (2, 5, CONTEXT))
    y[0, :3] = -100
    y[4] = -100
    loss, correct, count = LanguageModel().sums(model, x, y)
    expected, scored = 0.0, 0
    with torch.no_grad():
        for i in range(5):
            for t in range(CONTEXT):
                if y[i, t] >= 0:
                    logits = model.logits(x)[i, t].double()
                    expected += float(torch.logsumexp(logits, 0) - logits[y[i, t]])
                    scored += 1
    assert (count, correct) == (scored, None)
    assert scored == 5 * CONTEXT - 3 - CONTEXT
    assert loss.dtype == torch.float64
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)


def test_language_model_step_is_the_mean_over_words():
    torch.manual_seed(0)
    model = Bigram().eval()
    x, y = torch.randint(0, WORDS, (2, 5, CONTEXT))
    outcome = LanguageModel().step(model, x, y)
    total, _, count = LanguageModel().sums(model, x, y)
    assert float(outcome.loss.detach()) == pytest.approx(float(total.detach()) / count, rel=1e-6)
    assert (outcome.count, outcome.correct) == (5 * CONTEXT, None)
    outcome.loss.backward()
    assert model.table.weight.grad is not None


def test_perplexity():
    assert LanguageModel.perplexity(math.log(32)) == pytest.approx(32)
    assert LanguageModel.perplexity(1e4) == math.inf
    assert LanguageModel.perplexity(None) is None
    assert Classification.perplexity(1.0) is None


def test_the_task_comes_from_the_data_set():
    assert isinstance(task_of(dataset_info("cifar10")), Classification)
    assert isinstance(task_of(dataset_info("wikitext2")), LanguageModel)
    assert isinstance(task_of(SimpleNamespace()), Classification)


def test_evaluation_weighs_words_whatever_the_batch_size():
    torch.manual_seed(0)
    model, known = Bigram().eval(), TextRegistries()
    data = known.data("t", None, False, 0.0, 0)
    ledger = SimpleNamespace(samples=lambda n: None)
    scores = [
        evaluate(model, data.eval_stream("test", size, "cpu"), ledger, task=LanguageModel()) for size in (1, 7, 100)
    ]
    ids = torch.from_numpy(data.test.windows([0], len(data.test)))[0]
    with torch.no_grad():  # a bigram model needs no windows
        expected = float(model(ids[None, :-1], ids[None, 1:]).double().mean())
    for score in scores:
        assert (score.samples, score.accuracy) == (len(data.test) - 1, None)
        assert score.loss == pytest.approx(expected, rel=1e-6)


# -- schedules, optimizers, clipping ----------------------------------------------------------------------------------


def recipe(**values: Any) -> Recipe:
    return Recipe.model_validate({"iterations": 100, "batch_size": 4, "lr": 0.5, **values})


@pytest.mark.parametrize("schedule", ["steps", "cosine", "inverse_sqrt"])
def test_warm_up_is_linear_to_the_peak(schedule):
    r = recipe(schedule=schedule, warmup=10)
    assert [learning_rate(r, s) for s in range(10)] == pytest.approx([0.05 * (s + 1) for s in range(10)])


def test_cosine_closed_form():
    r = recipe(schedule="cosine", warmup=20)
    for step in range(20, 100):
        assert learning_rate(r, step) == pytest.approx(0.25 * (1 + math.cos(math.pi * (step - 20) / 80)), rel=1e-12)
    assert learning_rate(r, 20) == 0.5
    assert learning_rate(r, 60) == pytest.approx(0.25)
    assert 0 < learning_rate(r, 99) < 0.001
    assert learning_rate(recipe(schedule="cosine"), 0) == 0.5


def test_inverse_sqrt_closed_form():
    r = recipe(schedule="inverse_sqrt", warmup=16)
    assert learning_rate(r, 15) == pytest.approx(0.5)
    assert learning_rate(r, 63) == pytest.approx(0.25)  # four times the steps, half the rate
    for step in range(16, 100):  # Vaswani et al., equation 3, up to the factor that makes the peak 0.5
        assert learning_rate(r, step) == pytest.approx(0.5 * 4 * min((step + 1) ** -0.5, (step + 1) * 16**-1.5))


@pytest.mark.parametrize(("name", "kind"), [
    ("sgd", torch.optim.SGD), ("nesterov", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW),
])  # fmt: skip
def test_optimizer_of_a_recipe(name, kind):
    weight = nn.Parameter(torch.ones(3))
    made = make_optimizer([weight], recipe(optimizer=name, betas=[0.8, 0.95], momentum=0.7, weight_decay=0.01))
    assert type(made) is kind
    (group,) = made.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.01)
    if kind is torch.optim.SGD:
        assert (group["momentum"], group["nesterov"]) == (0.7, name == "nesterov")
    else:
        assert tuple(group["betas"]) == (0.8, 0.95)


def test_first_adam_step_by_hand():
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    made = make_optimizer([weight], recipe(optimizer="adam", lr=0.1, weight_decay=0.0))
    weight.grad = torch.tensor([5.0, -0.1, 2.0])
    made.step()
    assert torch.allclose(weight, torch.tensor([0.9, -1.9, 2.9]))  # the sign of each gradient, times lr


def stepped(name, memory, own):
    """Weights after three steps, and what each operation by itself, in float64, makes of them."""
    generator = torch.Generator().manual_seed(0)
    start, gradients = (torch.randn(shape, generator=generator) for shape in ((8, 4, 3, 3), (3, 8, 4, 3, 3)))
    weight = nn.Parameter(start.to(memory_format=own))
    made = make_optimizer([weight], recipe(optimizer=name, betas=[0.8, 0.95], momentum=0.7, weight_decay=0.01, lr=0.1))
    w, m, v = start.double(), torch.zeros(()).double(), torch.zeros(()).double()
    for step, gradient in enumerate(gradients, 1):
        weight.grad = gradient.contiguous(memory_format=memory)
        made.step()
        g = gradient.double() + (0 if name == "adamw" else 0.01 * w)
        if name in ("sgd", "nesterov"):
            m = 0.7 * m + g
            w = w - 0.1 * (g + 0.7 * m if name == "nesterov" else m)
        else:
            w = w * (1 - 0.1 * 0.01) if name == "adamw" else w
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
            w = w - 0.1 * (m / (1 - 0.8**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    assert weight.stride() == start.to(memory_format=own).stride()
    return weight.detach(), w


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("own", [torch.contiguous_format, torch.channels_last])
def test_steps_equal_float64_whatever_the_layout_of_the_gradient(name, memory, own):
    """Fused updates do not look at strides: a gradient in another layout would go to other weights."""
    got, want = stepped(name, memory, own)
    assert torch.allclose(got.double(), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw"])
def test_parameters_may_get_their_first_gradient_late(name):
    """Those of a skipped block: their first step is that of a parameter which starts then."""
    early, late, alone = (nn.Parameter(torch.ones(2, 3)) for _ in range(3))
    values = recipe(optimizer=name, betas=[0.8, 0.95], momentum=0.7, weight_decay=0.01, lr=0.1)
    both, one = make_optimizer([early, late], values), make_optimizer([alone], values)
    for step in range(4):
        gradient = torch.linspace(-1, 1, 6).view(2, 3) + step
        early.grad = gradient.clone()
        if step >= 2:
            late.grad, alone.grad = gradient.clone(), gradient.clone()
            one.step()
        both.step()
    assert torch.equal(late, alone)
    assert not torch.equal(early, late)


def test_clipping_is_by_the_common_norm():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    clip_gradients([a, b], 0.0)
    assert (float(a.grad), float(b.grad)) == (3.0, 4.0)
    clip_gradients([a, b], 10.0)
    assert (float(a.grad), float(b.grad)) == (3.0, 4.0)
    clip_gradients([a, b], 1.0)
    assert (float(a.grad), float(b.grad)) == pytest.approx((0.6, 0.8), rel=1e-5)


def test_text_recipes():
    for name in ("wikitext103", "wikitext2"):
        paper, short = (Recipe.model_validate(recipe_values(dataset_info(name), p)) for p in ("paper", "short"))
        assert (paper.optimizer, paper.betas, paper.val_fraction) == ("adam", (0.9, 0.98), 0.0)
        assert paper.clip_norm > 0
        assert paper.warmup > 0
        assert short.iterations == paper.iterations // 8
        assert short.warmup == round(paper.warmup * short.iterations / paper.iterations)
        info: DatasetInfo = dataset_info(name)
        passes = paper.iterations * paper.batch_size * info.shape[0] / info.train_size
        assert passes == pytest.approx(16 if name == "wikitext103" else 20, rel=0.01)
    smoke = Recipe.model_validate(recipe_values(dataset_info("docs_text"), "smoke"))
    assert smoke.batch_size * smoke.iterations * 64 < 100_000  # words: minutes on two cores
    with pytest.raises(ConfigError, match="embedded"):
        recipe_values(dataset_info("docs_text"), "paper")


# -- a whole run ------------------------------------------------------------------------------------------------------


class StopAt:
    """Asks the run to stop when a step has been reached."""

    def __init__(self, step: int) -> None:
        self.step = step

    def start(self, label: str, total: int, done: int = 0) -> None:
        pass

    def update(self, done: int, loss: float | None = None, label: str | None = None) -> None:
        if done == self.step:
            self.step = -1
            os.kill(os.getpid(), signal.SIGINT)

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def run(config: RunConfig, folder: Any, progress: Any = None) -> Any:
    return Trainer(config, Site(folder, device="cpu"), progress, registries=TextRegistries()).run()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return run(text_config(), tmp_path_factory.mktemp("straight"))


def test_a_language_model_learns_and_says_so_in_perplexities(straight):
    summary, lines = straight.summary, straight.metrics()
    assert summary["metric"] == "perplexity"
    assert summary["test_accuracy_last"] is None
    assert summary["test_accuracy_best"] is None
    entropy = -(0.9 + 0.1 / WORDS) * math.log(0.9 + 0.1 / WORDS) - 10 * (0.1 / WORDS) * math.log(0.1 / WORDS)
    assert math.exp(entropy) < summary["test_perplexity_best"] < 3.5 < WORDS  # the floor, and the trivial predictor
    assert summary["test_perplexity_best"] == min(line["test_perplexity"] for line in lines)
    assert summary["test_perplexity_last"] == lines[-1]["test_perplexity"] == math.exp(lines[-1]["test_loss"])
    best_val = min(lines, key=lambda line: line["val_perplexity"])
    assert summary["test_perplexity_at_best_val"] == best_val["test_perplexity"]


@pytest.mark.parametrize("step", [7, 33])
def test_a_stopped_run_goes_on_bit_for_bit(straight, tmp_path, step):
    with pytest.raises(RunInterrupted):
        run(text_config(), tmp_path, StopAt(step))
    record = run(text_config(), tmp_path)
    for key in ("weights_sha256", "ledger_sha256", "test_perplexity_last", "train_loss"):
        assert record.summary[key] == straight.summary[key]


def test_another_recipe_gives_other_weights(straight, tmp_path):
    other = run(text_config(lr=0.04), tmp_path)
    assert other.summary["weights_sha256"] != straight.summary["weights_sha256"]
