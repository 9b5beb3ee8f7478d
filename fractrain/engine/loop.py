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

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import nn

from fractrain.cost.ledger import Ledger
from fractrain.distributed.batch_norm import synchronise_norms
from fractrain.distributed.ranks import Ranks, StepSums
from fractrain.engine.config import RunConfig
from fractrain.engine.divergence import BadLoss, Diverged, LossWatch, first_nonfinite
from fractrain.engine.evaluate import EvaluationStopped, Scores, channels_last, evaluate
from fractrain.engine.registries import Registries
from fractrain.engine.schedule import Clock, learning_rate
from fractrain.engine.site import Site
from fractrain.engine.task import task_of
from fractrain.engine.throughput import Replaced, Throughput
from fractrain.experimental.cuda_graphs import RecordedSteps, Recorder
from fractrain.layers.kept import keeping
from fractrain.methods.base import MethodContext
from fractrain.methods.optimizer import clip_gradients
from fractrain.util.device import resolve_device
from fractrain.util.energy import EnergyMeter
from fractrain.util.errors import CheckpointError, ConfigError, NonFiniteError
from fractrain.util.seeds import derive_seed

AGAIN: Final = "start again: delete the run's folder, or `fractrain run` with --force"  # reproduce has no such option


class TrainingLoop:
    """A run in memory: model, method, optimizer, ledger, position.

    Call it inside ``torch.random.fork_rng``: it seeds torch's generators.

    Args:
        site: device, data and kernels; its store is not touched.
        registries: where names are looked up; None: the package's.
        on_epoch: called with the metrics line of each finished epoch.
        should_stop: asked between the batches of an evaluation.
        start: puts weights into the plain model before training begins; None: as the seed initialises it.
        ranks: the processes of the run; None: this one alone, on the site's device.
        recorder: records steps on the device, see :mod:`fractrain.experimental.cuda_graphs`; None: every step is done
            anew.

    Attributes:
        step: optimizer steps done.
        epoch: evaluation periods done.
        lines: metrics line of each finished epoch.
        watch: knows the loss as last read from the device.
        kept_bytes: what the first step kept for backward, bytes per sample; None before it.
    """

    def __init__(
        self, config: RunConfig, site: Site, registries: Registries | None = None, *,
        on_epoch: Callable[[dict[str, Any]], None] = lambda line: None, should_stop: Callable[[], bool] = lambda: False,
        start: Callable[[nn.Module], None] | None = None, ranks: Ranks | None = None, recorder: Recorder | None = None,
    ) -> None:  # fmt: skip
        recipe = config.recipe
        self.ranks = ranks or Ranks(resolve_device(site.device))
        device = self.ranks.device
        registries = registries or Registries()
        registries = registries.for_setting(config.setting, config.seed, self.ranks.rank, self.ranks.world)
        self.config, self.device, self.known = config, device, registries
        self._on_epoch, self._should_stop = on_epoch, should_stop
        torch.manual_seed(derive_seed(config.seed, "torch"))
        self.task = task_of(registries.dataset_info(config.dataset))
        self.data = data = self.ranks.on_all_ranks(
            lambda: registries.data(config.dataset, site.data_dir, site.download, recipe.val_fraction, config.seed)
        )
        self.data_digest = str(data.digest)
        self.stream = registries.train_stream(data, recipe.batch_size, config.seed, device, recipe.augment)
        self._cut = getattr(self.stream, "world", 1) == 1  # else batches come in shares
        if not self._cut:
            self.ranks.must_share(len(data.train), recipe.batch_size)
        splits = ("test",) if data.val is None else ("val", "test")
        self.eval_streams = {s: registries.eval_stream(data, s, recipe.batch_size, device) for s in splits}
        self.clock = Clock.from_recipe(recipe, len(self.stream))
        self._build(start, recorder)
        self.method.state.kernels = site.kernels
        self.step = self.epoch = 0
        self.lines: list[dict[str, Any]] = []
        self.kept_bytes: float | None = None
        self._seconds, self._since = 0.0, time.perf_counter()
        self.energy = EnergyMeter() if self.ranks.is_distributed else EnergyMeter.for_device(device)
        self.replaced = Replaced([self.stream, *self.eval_streams.values()])
        self.watch = LossWatch(device)
        self.ranks.reseed(config.seed, 0)
        self._reset_sums()

    def check_last_batch(self) -> None:
        """Refuse a last batch of one image, of which a BatchNorm would see one value; for data that have a number.

        Raises:
            ConfigError: so it is; sizes that work are named.
        """
        size, config, images = self.config.recipe.batch_size, self.config, len(self.data.train)
        if self.task.metric != "accuracy" or (images % size or size) != 1:
            return
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            plain = self.known.model(config.model, config.dataset, config.seed).train()
            one = torch.zeros(1, *self.known.dataset_info(config.dataset).shape)
            try:
                with torch.no_grad():
                    plain(one)
            except ValueError as error:  # of torch's BatchNorm
                good = [n for n in range(max(2, size - 3), size + 4) if images % n != 1]
                raise ConfigError(
                    f"{images:,} images in batches of {size} leave one for the last batch, of which a BatchNorm of "
                    f"{config.model} would see a single value: choose another recipe.batch_size, for example "
                    f"{', '.join(map(str, good))}"
                ) from error

    def _build(self, start: Callable[[nn.Module], None] | None, recorder: Recorder | None) -> None:
        """Build model, method and optimizer."""
        config, recipe = self.config, self.config.recipe
        plain: Any = self.known.model(config.model, config.dataset, config.seed)
        if recipe.zero_init_residual and hasattr(plain, "zero_init_residual"):
            plain.zero_init_residual()
        if start is not None:
            start(plain)
        blocks = list(getattr(plain, "gateable_blocks", list)())  # a model without blocks has an empty list
        weights: Any = self.known.block_weights(plain, config.dataset, blocks)
        macs = self.known.forward_macs(plain, config.dataset)
        self.ledger = Ledger({"forward_macs": macs, "blocks": blocks, "batch_size": recipe.batch_size, **weights})
        self.method = self.known.method(config.method, config.settings)
        self._same_version(config.method, config.method_version, self.method.version)
        self._same_version(config.model, config.model_version, self.known.model_version(config.model))
        context = MethodContext(
            seed=config.seed, steps_per_epoch=self.clock.period, total_steps=self.clock.total,
            batch_size=recipe.batch_size, blocks=blocks, ledger=self.ledger, **weights,
            **self.ranks.context(recipe.sync_ranges and not self.method.own_samples),
        )  # fmt: skip
        model = self.method.prepare(plain, context)
        if recipe.sync_batch_norm and not self.method.own_samples:
            synchronise_norms(model, self.ranks)
        self.model = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.train()
        self.recorded = None
        alone = not self.ranks.is_distributed and not self.method.makes_optimizer()
        if recorder is not None and alone and self.method.step_key(0) is not None:
            self.recorded = RecordedSteps(recorder, self.method, self.ledger, self.device, self._persistent_state)
        self.optimizer = self.method.optimizer(self.model.parameters(), recipe)
        self._shares = [float(group["lr"]) / recipe.lr for group in self.optimizer.param_groups]
        self._mark_recorded()

    def _mark_recorded(self) -> None:
        """Tell Adam whether its steps are recorded on a GPU: then nothing of a step is left to the host."""
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = self.recorded is not None

    def _same_version(self, name: str, wanted: int, installed: int) -> None:
        """Refuse to train a run of another version than what is installed."""
        if wanted != installed:
            raise ConfigError(
                f"run {self.config.run_id} is of version {wanted} of {name}, installed is version {installed}: "
                "results differ, start a new run"
            )

    def _persistent_state(self) -> Iterator[torch.Tensor]:
        """What a step changes and the next one reads."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        for kept in self.optimizer.state.values():
            yield from (v for v in kept.values() if isinstance(v, torch.Tensor))

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
        self.throughput.step_seconds.append(time.perf_counter() - started)
        self.energy.poll()

    def _train_step(self) -> None:
        self.method.on_step_start(self.step)
        with self.ranks.shard_batch(lambda: self._batch(self.step), self._cut) as (x, y):
            self._optimize(x, y)

    def _optimize(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Train on this process's share of the batch."""
        self.method.state.sample_offset, self.method.state.batch_samples = self.ranks.start, self.ranks.samples
        counted = self.ledger.enabled
        self.ledger.enabled = counted and self.ranks.counts
        self.ledger.samples(len(y))
        rate = learning_rate(self.config.recipe, self.step)
        recorded = self.recorded if self.recorded is not None and self.recorded.on else None
        for group, share in zip(self.optimizer.param_groups, self._shares, strict=True):
            group["lr"] = rate * share if recorded is None else recorded.set_rate(rate)
        done = None if recorded is None else recorded.run(self.step, x, y, self._device_step)
        if done is None:
            done = self._device_step(x, y, lambda total: self.watch.record_loss(self.step, total))
        else:
            self.watch.record_loss(self.step, done.total)
        self.method.on_step_end(self.step, done.loss, done.extra)
        self.loss_sum += done.loss.double()
        if done.correct is not None:
            self.correct += done.correct
        self.samples += done.count
        self.throughput.answers += done.count
        self.ledger.enabled = counted

    def _device_step(
        self, x: torch.Tensor, y: torch.Tensor, see: Callable[[torch.Tensor], None] | None = None
    ) -> StepSums:
        """The device's part of a step; ``see`` is shown the loss before the backward pass."""
        self.optimizer.zero_grad(set_to_none=True)
        none: AbstractContextManager[dict[int, int]] = nullcontext({})
        with keeping(self.model) if self.kept_bytes is None else none as kept:
            done = self.ranks.combine(
                self.task.step(self.model, x, y, self.ranks.global_batch), self.method.extra_loss()
            )
        if self.kept_bytes is None:
            self.kept_bytes = sum(kept.values()) / len(y)
        if see is not None:
            see(done.total)
        done.objective.backward()  # type: ignore[no-untyped-call]
        self.ranks.sum_gradients(self.model.parameters())
        clip_gradients(self.model.parameters(), self.config.recipe.clip_norm)
        self.optimizer.step()
        return done

    def _batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.stream.batch(*self.clock.data(step))
        return channels_last(x), y

    def _end_epoch(self) -> None:
        """Evaluate, write the metrics line, tell the method. A stop in the middle leaves everything as it was."""
        self.check_finite()
        self.ranks.same_model(self.model)
        self.method.state.sample_offset, self.method.state.batch_samples = 0, None  # batches are dealt out whole
        before = self.ledger.state_dict()
        self.ledger.begin("eval", self.epoch)
        try:
            with self.ranks.on_its_own():
                scores = {name: self._evaluate(batches) for name, batches in self.eval_streams.items()}
        except EvaluationStopped:
            self.ledger.load_state_dict(before)
            self.ledger.begin("train", self.epoch)
            return
        steps = sum(not self.method.skip_step(s) for s in range(self.clock.start(self.epoch), self.step))
        mean_loss = float(self.loss_sum) / steps if steps else float("nan")
        self.ranks.sum_ledger(self.ledger)
        line = self.ranks.broadcast(self._metrics_line(mean_loss, scores))
        self.method.on_epoch_end(self.epoch, mean_loss)
        self.lines.append(line)
        self._on_epoch(line)
        self.epoch += 1
        self._reset_sums()

    def _metrics_line(self, mean_loss: float, scores: dict[str, Scores]) -> dict[str, Any]:
        """Return the line of the epoch just trained.

        Accuracies and cp are in percent; perplexities are per word. What the task does not have is left out
        (perplexity) or None (accuracy).

        Args:
            mean_loss: mean task loss of the epoch's steps.
            scores: result of each part that was evaluated; ``val`` may be absent.
        """
        val, test = scores.get("val"), scores["test"]
        trained = self.samples > 0  # else all steps were skipped
        counted = trained and self.task.metric == "accuracy"
        line: dict[str, Any] = {
            "epoch": self.epoch,
            "iteration": self.step,
            "lr": learning_rate(self.config.recipe, self.step - 1),
            "train_loss": mean_loss if trained else None,
            "train_accuracy": 100 * int(self.correct) / self.samples if counted else None,
            "val_accuracy": val.accuracy if val else None,
            "val_loss": val.loss if val else None,
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
            "cp_percent": self.known.cp(self.ledger),
            "method": {name: float(value) for name, value in self.method.metrics().items()},
            "seconds": self.seconds,
            "joules": self.energy.total,
            **self.throughput.line("images" if self.task.metric == "accuracy" else "words"),
        }
        if self.task.metric == "perplexity":
            perplexity = self.task.perplexity
            line["train_perplexity"] = perplexity(line["train_loss"])
            line["val_perplexity"] = perplexity(line["val_loss"])
            line["test_perplexity"] = perplexity(line["test_loss"])
        return line

    def _evaluate(self, batches: Any) -> Scores:
        with self.ranks.failing_together():
            return evaluate(self.model, batches, self.ledger, self._should_stop, self.task, self.ranks)

    def _reset_sums(self) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.samples: int = 0
        self.throughput = Throughput(self.stream)

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
        with self.ranks.on_its_own():
            layer = noted[0] if noted else first_nonfinite(self.model, lambda: self.task.step(self.model, x, y).loss)
        message = (
            f"run {self.config.run_id} diverged: loss is {bad.value} at step {bad.step}, first non-finite values in "
            f"layer {layer!r}; a smaller --set recipe.lr may help"
        )
        return Diverged(message, layer, bad.step)

    # -- saving ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes while training, as tensors and plain values; on several processes, of all of them.

        All processes of the run must call it. What it returns does not depend on how many there are.
        """
        self.ranks.sum_ledger(self.ledger)
        if self.ranks.is_distributed:
            self.replaced.before = {
                k: v for images in self.ranks.all_gather(self.replaced.images) for k, v in images.items()
            }
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "ledger": self.ledger.state_dict(),
            "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
            "cursor": {"epoch": self.epoch, "step": self.step},
            "sums": {"loss": self.loss_sum, "correct": self.correct, "samples": self.samples},
            "lines": self.lines,
            "kept_bytes": self.kept_bytes,
            "seconds": self.seconds,
            "joules": self.energy.joules if self.energy.total is not None else None,
            "data_digest": self.data_digest,
            "replaced": self.replaced.images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where :meth:`state_dict` was called.

        Raises:
            CheckpointError: the state does not fit this run's model, method or data.
        """
        self._reset_sums()
        if state.get("data_digest") != self.data_digest:
            raise CheckpointError(
                f"run {self.config.run_id}: the data has changed since the checkpoint; restore it, or {AGAIN}"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.method.load_state_dict(state["method"])
            self.ledger.load_state_dict(state["ledger"])
        except (KeyError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"run {self.config.run_id}: the checkpoint does not fit the installed code ({reason}); {AGAIN}"
            ) from error
        self.epoch, self.step = state["cursor"]["epoch"], state["cursor"]["step"]
        self.ledger.begin("train", self.epoch)
        if not self.ranks.is_main:
            self.ledger.clear()
        self.lines = list(state["lines"])
        self.replaced.before = dict(state.get("replaced", {}))
        self.loss_sum.copy_(state["sums"]["loss"])
        self.correct.copy_(state["sums"]["correct"])
        self.samples = state["sums"]["samples"]
        self.kept_bytes = state.get("kept_bytes")
        self._seconds, self._since = state["seconds"], time.perf_counter()
        self.energy.go_on(state.get("joules"))
        torch.set_rng_state(state["rng"]["cpu"])
        if self.device.type == "cuda" and state["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)
        self.ranks.reseed(self.config.seed, self.step)
        if self.recorded is not None:
            self.recorded.forget()
        self._mark_recorded()  # the checkpoint may come from another device
