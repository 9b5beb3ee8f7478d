"""The training loop: one for all methods, which enter through the hooks of :class:`fractrain.methods.base.Method`.

::

    prepare
    for each evaluation period ("epoch"):
        on_epoch_start
        for each step:
            skip_step (if so, nothing else); on_step_start; forward; extra_loss; backward; optimizer; on_step_end
        evaluate on the validation and the test part; metrics
        on_epoch_end

Evaluation comes before ``on_epoch_end``, so that a model is judged at the precision it was just trained with. All that
changes from step to step is in :meth:`TrainingLoop.state_dict`; between two calls of :meth:`TrainingLoop.advance` it
can be saved, and a loop that loads it goes on bit for bit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fractrain.cost.ledger import Ledger
from fractrain.engine.config import RunConfig
from fractrain.engine.diagnose import first_nonfinite
from fractrain.engine.evaluate import EvaluationStopped, Scores, channels_last, evaluate
from fractrain.engine.registries import Registries
from fractrain.engine.schedule import Clock, learning_rate
from fractrain.engine.watch import BadLoss, Diverged, LossWatch
from fractrain.errors import CheckpointError, ConfigError, NonFiniteError
from fractrain.methods.base import MethodContext
from fractrain.seeds import derive_seed


class TrainingLoop:
    """A run in memory: model, method, optimizer, ledger, position.

    Call it inside ``torch.random.fork_rng``: it seeds torch's generators.

    Args:
        config: the run.
        device: where it is trained.
        data_dir: folder of the data sets, or None.
        download: fetch missing data.
        registries: where names are looked up.
        on_epoch: called with the metrics line of each finished epoch.
        should_stop: asked between the batches of an evaluation.

    Attributes:
        step: optimizer steps done.
        epoch: evaluation periods done.
        lines: metrics line of each finished epoch.
        watch: knows the loss as last read from the device.
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        data_dir: Path | None,
        download: bool,
        registries: Registries,
        on_epoch: Callable[[dict[str, Any]], None],
        should_stop: Callable[[], bool],
    ) -> None:
        recipe = config.recipe
        self.config, self.device, self.known = config, device, registries
        self._on_epoch, self._should_stop = on_epoch, should_stop
        torch.manual_seed(derive_seed(config.seed, "torch"))
        data = registries.data(config.dataset, data_dir, download, recipe.val_fraction, config.seed)
        self.data_digest = str(data.digest)
        self.stream = registries.train_stream(data, recipe.batch_size, config.seed, device, recipe.augment)
        splits = ("test",) if data.val is None else ("val", "test")
        self.eval_streams = {s: registries.eval_stream(data, s, recipe.batch_size, device) for s in splits}
        self.clock = Clock.of(recipe, len(self.stream))
        self._build()
        self.step = self.epoch = 0
        self.lines: list[dict[str, Any]] = []
        self._seconds, self._since = 0.0, time.perf_counter()
        self.watch = LossWatch(device)
        self._reset_sums()

    def _build(self) -> None:
        """Build model, method and optimizer."""
        config, recipe = self.config, self.config.recipe
        plain: Any = self.known.model(config.model, config.dataset, config.seed)
        if recipe.zero_init_residual and hasattr(plain, "zero_init_residual"):
            plain.zero_init_residual()
        find_blocks: Any = getattr(plain, "gateable_blocks", list)  # a model without blocks has an empty list
        blocks = list(find_blocks())
        macs = self.known.forward_macs(plain, config.dataset)
        self.ledger = Ledger({"forward_macs": macs, "blocks": blocks, "batch_size": recipe.batch_size})
        self.method = self.known.method(config.method, config.settings)
        if self.method.version != config.method_version:
            raise ConfigError(
                f"run {config.run_id} is of version {config.method_version} of {config.method}, installed is version "
                f"{self.method.version}: results differ, start a new run"
            )
        context = MethodContext(
            seed=config.seed, steps_per_epoch=self.clock.period, total_steps=self.clock.total,
            batch_size=recipe.batch_size, blocks=blocks, ledger=self.ledger,
        )  # fmt: skip
        model = self.method.prepare(plain, context)
        self.model = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.train()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
            foreach=True,
        )  # fmt: skip

    # -- going on ----------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """All epochs are done."""
        return self.epoch == self.clock.periods

    def advance(self) -> None:
        """Do one training step or, when an epoch's steps are done, end the epoch.

        Raises:
            Diverged: the loss, or a tensor inside a layer, is inf or nan.
        """
        if self.step == self.clock.end(self.epoch):
            self._end_epoch()
            return
        if self.step == self.clock.start(self.epoch):
            self.ledger.begin("train", self.epoch)
            self.method.on_epoch_start(self.epoch)
        if self.method.skip_step(self.step):
            self.step += 1
            return
        started = time.perf_counter()
        try:
            self._train_step()
        except BadLoss as error:
            raise self._diverged(error) from error
        except NonFiniteError as error:  # a layer found it first
            message = f"run {self.config.run_id} diverged at step {self.step} in layer {error.layer!r}: {error}"
            raise Diverged(message, error.layer, self.step) from error
        self.step += 1
        self._step_seconds.append(time.perf_counter() - started)

    def _train_step(self) -> None:
        self.method.on_step_start(self.step)
        x, y = self._batch(self.step)
        self.ledger.samples(len(y))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.recipe, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        output = self.model(x)
        loss = F.cross_entropy(output, y)
        extra = self.method.extra_loss()
        total = loss if extra is None else loss + extra
        self.watch.see(self.step, total)
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        loss = loss.detach()
        self.method.on_step_end(self.step, loss, None if extra is None else extra.detach())
        self._loss_sum += loss.double()
        self._correct += (output.detach().argmax(dim=1) == y).sum()
        self._samples += len(y)

    def _batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.stream.batch(*self.clock.data(step))
        return channels_last(x), y

    def _end_epoch(self) -> None:
        """Evaluate, write the metrics line, tell the method. A stop in the middle leaves everything as it was."""
        self.check_finite()
        before = self.ledger.state_dict()
        self.ledger.begin("eval", self.epoch)
        try:
            scores = {
                name: evaluate(self.model, batches, self.ledger, self._should_stop)
                for name, batches in self.eval_streams.items()
            }
        except EvaluationStopped:
            self.ledger.load_state_dict(before)
            self.ledger.begin("train", self.epoch)
            return
        steps = sum(not self.method.skip_step(s) for s in range(self.clock.start(self.epoch), self.step))
        mean_loss = float(self._loss_sum) / steps if steps else float("nan")
        line = self._line(mean_loss, scores)
        self.method.on_epoch_end(self.epoch, mean_loss)
        self.lines.append(line)
        self._on_epoch(line)
        self.epoch += 1
        self._reset_sums()

    def _line(self, mean_loss: float, scores: dict[str, Scores]) -> dict[str, Any]:
        """Metrics line of the epoch just trained; accuracies and cp in percent."""
        val, test = scores.get("val"), scores["test"]
        return {
            "epoch": self.epoch,
            "iteration": self.step,
            "lr": learning_rate(self.config.recipe, self.step - 1),
            "train_loss": mean_loss if self._samples else None,  # None: all steps were skipped
            "train_accuracy": 100 * int(self._correct) / self._samples if self._samples else None,
            "val_accuracy": val.accuracy if val else None,
            "val_loss": val.loss if val else None,
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
            "cp_percent": self.known.cp(self.ledger),
            "method": {name: float(value) for name, value in self.method.metrics().items()},
            "seconds": self.seconds,
            "step_seconds": statistics.median(self._step_seconds) if self._step_seconds else None,
        }

    def _reset_sums(self) -> None:
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self._correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self._samples: int = 0
        self._step_seconds: list[float] = []

    @property
    def seconds(self) -> float:
        """Wall clock of this run so far, earlier starts included."""
        return self._seconds + time.perf_counter() - self._since

    # -- divergence --------------------------------------------------------------------------------------------------

    def check_finite(self) -> None:
        """Read the loss from the device.

        Raises:
            Diverged: a loss since the last reading was inf or nan.
        """
        try:
            self.watch.read()
        except BadLoss as error:
            raise self._diverged(error) from error

    def _diverged(self, bad: BadLoss) -> Diverged:
        """Find the layer by one more forward pass on the batch in question."""
        x, y = self._batch(bad.step)
        self.ledger.enabled = False
        noted = self.method.state.bad_site()  # on a GPU, the layers took notes
        layer = noted[0] if noted else first_nonfinite(self.model, lambda: F.cross_entropy(self.model(x), y))
        message = (
            f"run {self.config.run_id} diverged: loss is {bad.value} at step {bad.step}, first non-finite values in "
            f"layer {layer!r}; a smaller --set recipe.lr may help"
        )
        return Diverged(message, layer, bad.step)

    # -- saving ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes while training, as tensors and plain values."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "ledger": self.ledger.state_dict(),
            "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
            "cursor": {"epoch": self.epoch, "step": self.step},
            "sums": {"loss": self._loss_sum, "correct": self._correct, "samples": self._samples},
            "lines": self.lines,
            "seconds": self.seconds,
            "data_digest": self.data_digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where :meth:`state_dict` was called.

        Raises:
            CheckpointError: the state does not fit this run's model, method or data.
        """
        if state.get("data_digest") != self.data_digest:
            raise CheckpointError(
                f"run {self.config.run_id}: the data has changed since the checkpoint; restore it, or run with --force"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.method.load_state_dict(state["method"])
            self.ledger.load_state_dict(state["ledger"])
        except (KeyError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"run {self.config.run_id}: the checkpoint does not fit the installed code ({reason}); run with --force"
            ) from error
        self.epoch, self.step = state["cursor"]["epoch"], state["cursor"]["step"]
        self.ledger.begin("train", self.epoch)
        self.lines = list(state["lines"])
        self._reset_sums()
        self._loss_sum.copy_(state["sums"]["loss"])
        self._correct.copy_(state["sums"]["correct"])
        self._samples = state["sums"]["samples"]
        self._seconds, self._since = state["seconds"], time.perf_counter()
        torch.set_rng_state(state["rng"]["cpu"])
        if self.device.type == "cuda" and state["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)
