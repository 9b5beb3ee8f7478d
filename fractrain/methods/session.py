"""A method inside a training loop of your own: five calls, no harness needed."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from fractrain.cost.ledger import Ledger
from fractrain.layers.base import QuantLayer
from fractrain.layers.convert import KINDS, replaced_whole
from fractrain.layers.eager import eager
from fractrain.layers.nested import first_tensor
from fractrain.layers.own_products import find, own_products, route
from fractrain.layers.recomputation import recomputing
from fractrain.methods import registry
from fractrain.methods.base import Method, MethodContext
from fractrain.methods.blocks import gateable_blocks
from fractrain.methods.coverage import CODE, WHOLE, Coverage, Meter
from fractrain.methods.export import FileFormat, Prepared, refuse_existing, write
from fractrain.methods.optimizer_recipe import OptimizerRecipe
from fractrain.methods.plain import PlainForm
from fractrain.util.errors import ConfigError
from fractrain.util.settings import configured

MUCH, LITTLE = 10.0, 0.1  # percent of the forward MACs worth a warning: in floating point, and reached by no method

log = logging.getLogger(__name__)


class Session:
    """A model with a method attached; made by :func:`attach`.

    ::

        session = fractrain.attach("fractrain", model)            # before the optimizer is made
        optimizer = torch.optim.SGD(session.model.parameters(), lr=0.1)
        for x, y in loader:
            if session.skip():                                        # only methods that drop mini-batches say so
                continue
            loss = session.loss(criterion(session.model(x), y))   # adds the method's own term
            loss.backward(); optimizer.step(); optimizer.zero_grad()
            session.step()
        session.epoch()                                           # at the end of every epoch

    Attributes:
        model: the low-precision model (the one given, changed in place).
        method: the method.
        ledger: what was multiplied so far; see :meth:`costs`.
    """

    def __init__(
        self, method: Method, model: nn.Module, context: MethodContext, strict: bool = False, example_inputs: Any = None
    ) -> None:
        self.method = method
        self._given_examples = example_inputs is not None
        self._meter = Meter(strict)
        self.ledger = context.ledger
        try:
            self.ledger.meta["blocks"] = gateable_blocks(model, context)
        except ConfigError:
            if context.blocks:
                raise
            self.ledger.meta["blocks"] = []  # a model without known blocks: cp is over all layers
        given = {id(p) for p in model.parameters()}
        self._plain: PlainForm | None = PlainForm(model)
        if self._given_examples:
            find(model, example_inputs, replaced_whole)
        self.model = method.prepare(model, context)
        route(self.model)
        self._added = [p for p in self.model.parameters() if id(p) not in given and p.requires_grad]
        self._seen: list[tuple[int, torch.Tensor]] = []
        self._optimizer_made = not method.makes_optimizer()
        self._steps = self._epochs = self._steps_in_epoch = self._skipped = 0
        self._loss_sum: Any = 0.0
        self._trained = False  # whether there was a training pass since the last step
        self._last: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self.method.on_epoch_start(0)
        self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        self.model.register_forward_pre_hook(self._watch, with_kwargs=True)
        self.model.register_forward_hook(self._after_forward, always_call=True)
        self._plain.settle(self.model)

    @eager
    def _before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if recomputing():
            return
        self.ledger.begin("train" if model.training else "eval", self._epochs)
        first = first_tensor((args, kwargs))
        self.ledger.samples(0 if first is None or not first.dim() else first.shape[0])
        state = self.method.state
        state.passes, state.trains = state.passes + 1, model.training
        self._trained |= model.training
        self.method.on_step_start(self._steps)

    def _watch(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling() and not recomputing():
            self._meter.before(model, self.method.state, args, kwargs)

    def _after_forward(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not torch.compiler.is_compiling() and self._meter.after(model, self.method.state, output is not None):
            for line in self._warnings():
                log.warning("%s", line)

    def _warnings(self) -> list[str]:
        """What the first forward pass showed of the share that stays in floating point, in at most one line."""
        found = self._meter.coverage
        assert found is not None
        plain = 100 - found.percent("quantized")
        if plain == 100 or (plain < MUCH and 100 - found.covered < LITTLE):  # fp32 is meant to quantize nothing
            return []
        where = ", ".join(dict.fromkeys(p.name or "the model" for p in found.outside[:3]))
        outside = f", {100 - found.covered:.1f} % because no method reaches them ({where})" if found.outside else ""
        choice = ""
        if getattr(self.method.settings, "layers", "") == "convolutions" and found.percent("float") > MUCH:
            choice = "; layers=all quantizes linear layers and attention as well"
        if not self._given_examples and any(p.why.startswith(CODE) for p in found.outside):
            choice += "; attach(..., example_inputs=x) reaches products in a model's own code"
        return [
            f"{self.method.name} leaves {plain:.1f} % of the forward MACs of {type(self.model).__name__} in floating "
            f"point{outside}; session.report() names them{choice}"
        ]

    def report(self) -> Coverage:
        """What the first forward pass multiplied: every operation, quantized or why not, and its share of the MACs.

        Raises:
            ConfigError: there was no forward pass yet, or only compiled ones, which cannot be watched.
        """
        if self._meter.coverage is None:
            raise ConfigError("session.report() before the first forward pass (a compiled one does not count)")
        return self._meter.coverage

    def plain_state_dict(self) -> dict[str, torch.Tensor]:
        """The model's weights under the names that they have in the plain model, which loads them as they are."""
        return self._form().state_dict(self.model)

    def load_plain(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load a plain model's ``state_dict``; gates and running ranges stay as they are.

        Raises:
            ConfigError: names or shapes are others than the plain model's.
        """
        self._form().load(self.model, state)

    def detach(self) -> nn.Module:
        """Give the plain model back, with the trained weights and no hooks of ours; the session ends.

        The parameters are the very objects, so that an optimizer goes on working. All modules get the mode (training
        or evaluation) of the whole.
        """
        plain = self._form().restore(self.model)
        self._plain = None
        return plain

    def _form(self) -> PlainForm:
        if self._plain is None:
            raise ConfigError("the method was detached from this model: attach it anew")
        return self._plain

    def export(
        self, file: Path | str, format: FileFormat = "torch", *, example_inputs: Any = None, force: bool = False
    ) -> Path:
        """Write the trained weights for use without this package; see :func:`fractrain.methods.export.write`.

        Args:
            file: where to.
            format: ``torch``, ``safetensors``, or ``onnx-qdq``: the network as evaluation computes it, with
                QuantizeLinear and DequantizeLinear nodes.
            example_inputs: for ``onnx-qdq``: inputs of the model (a tensor, a tuple of arguments, or a dict of them by
                name) on which the graph is compared; where they have several samples, it takes any number of them.
            force: replace a file that is there.

        Returns:
            The path of the file.

        Raises:
            ConfigError: the file is there, the method keeps no counterpart of some of the plain model's tensors, or
                ONNX cannot express what evaluation computes.
            MachineError: a package that the format needs is not installed.
            StoreError: the file cannot be written.
        """
        file = Path(file)
        refuse_existing(file, force)
        if format == "onnx-qdq" and example_inputs is None:
            raise ConfigError('session.export(..., "onnx-qdq") needs example_inputs=x, inputs to compare the graph on')
        self._form()
        own = copy.deepcopy(self)  # what is written is taken apart
        found = Prepared(own.model.cpu().eval(), own.method, own._form())
        examples = tree_map(lambda x: x.detach().cpu() if isinstance(x, torch.Tensor) else x, example_inputs)
        trained = {"steps": self._steps, "epochs": self._epochs}
        return write(file, format, found, {"session": trained}, lambda: examples)

    def optimizer(self, **values: Any) -> torch.optim.Optimizer:
        """Make the method's optimizer of the model's parameters: any will do but for methods that bring their own.

        Args:
            values: ``lr``, and where it shall not be SGD with momentum 0.9: ``optimizer`` (``sgd``, ``nesterov``,
                ``adam``, ``adamw``), ``momentum``, ``weight_decay``, ``betas``.

        Raises:
            ConfigError: an unknown or wrong value.
        """
        recipe = configured(OptimizerRecipe, values, "session.optimizer")
        optimizer = self.method.optimizer(self.model.parameters(), recipe)
        self._optimizer_made = True
        return optimizer

    def loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the task loss (0-dim) plus the method's own term, and remember both for :meth:`step`."""
        extra = self.method.extra_loss()
        self._last = (loss.detach(), None if extra is None else extra.detach())
        return loss if extra is None else loss + extra

    def skip(self) -> bool:
        """Whether the method drops the next mini-batch; if so the step is counted, and the batch must not be used.

        Needed only for methods that drop mini-batches (``slu`` with ``smd``).
        """
        if not self.method.skip_step(self._steps):
            return False
        self._steps += 1
        self._skipped += 1
        return True

    def step(self) -> None:
        """To be called after every optimizer step.

        Raises:
            RuntimeError: :meth:`loss` was not called before.
            ConfigError: there was no pass through the whole model in training mode since the last step, so that nothing
                was counted; the method's own optimizer was not made; or, at the second call, no optimizer has the
                parameters that the method has added.
        """
        if self._last is None:
            raise RuntimeError("session.step() without session.loss(...) before it: the method needs the loss")
        if not self._trained:
            raise ConfigError(
                "session.step() without a pass through session.model in training mode since the last one: call "
                "session.model(x), not its parts, after session.model.train() (parts may be frozen by their own eval())"
            )
        self._check_optimizer()
        loss, extra = self._last
        self.method.on_step_end(self._steps, loss, extra)
        self._loss_sum = self._loss_sum + loss
        self._steps += 1
        self._steps_in_epoch += 1
        self._trained, self._last = False, None

    def _check_optimizer(self) -> None:
        """Refuse an optimizer other than the method's own, or one made before the method added parameters."""
        if not self._optimizer_made:
            raise ConfigError(
                f"{self.method.name} acts through an optimizer of its own: make it by session.optimizer(lr=...)"
            )
        if self._steps == 0:
            self._seen = [(p._version, p.detach().clone()) for p in self._added]
            return
        pairs = zip(self._added, self._seen, strict=bool(self._seen))
        moved = any(p._version != v or not torch.equal(p, was) for p, (v, was) in pairs)  # fused: no new version
        if self._seen and not moved and any(p.grad is not None for p in self._added):
            raise ConfigError(
                f"{len(self._added)} tensors that {self.method.name} has added (its gates) do not move: make the "
                "optimizer after attach(), from session.model.parameters()"
            )
        self._seen = []

    def epoch(self) -> None:
        """To be called at the end of every epoch; precision stages move here.

        Raises:
            RuntimeError: no step was made since the last epoch.
        """
        if not self._steps_in_epoch and not self._skipped:
            raise RuntimeError("session.epoch() without a session.step() since the last one")
        mean = float(self._loss_sum) / self._steps_in_epoch if self._steps_in_epoch else math.nan
        self.method.on_epoch_end(self._epochs, mean)
        self._epochs += 1
        self._steps_in_epoch, self._skipped, self._loss_sum = 0, 0, 0.0
        self._meter.forget()
        self.method.on_epoch_start(self._epochs)

    def costs(self) -> dict[str, float]:
        """What training has cost so far; what stays in floating point counts at 32 bits, wherever it is computed.

        Returns:
            ``cost_percent``: effective MACs of the whole model in percent of 32-bit training; ``covered_percent``:
            share of the forward MACs in layers that methods reach (nan where no pass was watched);
            ``cp_percent``: the papers' cp, of the gated blocks alone (of all layers where there are none);
            ``effective_macs`` and ``raw_macs`` of everything. 100 percent is 32-bit training.

        Raises:
            ConfigError: the model has not been trained yet.
        """
        if not self.ledger.epochs():
            raise ConfigError("session.costs() before the first step: nothing has been trained yet")
        from fractrain.cost import metrics

        found = self._meter.coverage
        return {
            "cost_percent": metrics.cost_percent(self.ledger),
            "covered_percent": math.nan if found is None else found.covered,
            "cp_percent": metrics.cp(self.ledger),
            "effective_macs": metrics.effective_macs(self.ledger),
            "raw_macs": metrics.raw_macs(self.ledger),
        }

    def covered(self) -> float:
        """Share (0..1) of the weights of convolutions and linear layers that lie in quantized layers."""
        weights = [(m, int(m.weight.numel())) for m in self._layers() if getattr(m, "weight", None) is not None]
        return sum(n for m, n in weights if _is_low(m)) / max(1, sum(n for _, n in weights))

    def _layers(self) -> list[Any]:
        return [m for m in self.model.modules() if isinstance(m, KINDS) and own_products(m) is None]

    def __repr__(self) -> str:
        layers = self._layers()
        low = [m for m in layers if _is_low(m)]
        lines = [
            f"Session({self.method.name} on {type(self.model).__name__}: {len(low)} of {len(layers)} layers quantized, "
            f"{100 * self.covered():.1f} % of their weights; {self._steps} steps, {self._epochs} epochs)",
            *(f"  {text}" for text in self.method.remarks()),
        ]
        if self._steps:
            costs = self.costs()
            blocks = self.ledger.meta["blocks"]
            of = f"of the {len(blocks)} gated blocks" if blocks else "of all layers"
            lines.append(
                f"  {costs['cost_percent']:.4g} % of 32-bit training, {costs['effective_macs']:.3g} effective MACs "
                f"so far; cp {costs['cp_percent']:.4g} % {of}"
            )
            if costs["covered_percent"] < WHOLE:
                lines.append(
                    f"  methods reach {costs['covered_percent']:.1f} % of the forward MACs; the rest is at 32 bits"
                )
        return "\n".join(lines)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model and the optimizer, for your checkpoint (``weights_only=True`` can load it)."""
        return {
            "method": self.method.state_dict(), "ledger": self.ledger.state_dict(), "steps": self._steps,
            "epochs": self._epochs, "steps_in_epoch": self._steps_in_epoch, "skipped": self._skipped,
            "loss_sum": torch.as_tensor(self._loss_sum).cpu(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, after the model's own ``load_state_dict``."""
        self.method.load_state_dict(state["method"])
        self.ledger.load_state_dict(state["ledger"])
        self._steps, self._epochs = state["steps"], state["epochs"]
        self._steps_in_epoch, self._skipped = state["steps_in_epoch"], state["skipped"]
        device = next(self.model.parameters()).device
        self._loss_sum = state["loss_sum"].to(device) if self._steps_in_epoch else 0.0


def _is_low(layer: nn.Module) -> bool:
    """Whether a layer has an operand in low precision: one kept in floating point is wrapped, too, to be counted."""
    return isinstance(layer, QuantLayer) and not layer.precision.is_float


def attach(
    name: str | Method, model: nn.Module, *, seed: int = 0, blocks: Sequence[str] = (), steps_per_epoch: int = 1,
    total_steps: int = 1, batch_size: int = 128, strict: bool = False, example_inputs: Any = None, **settings: Any,
) -> Session:  # fmt: skip
    """Attach a method to a model of your own. Make the optimizer afterwards: gates have parameters, too.

    Args:
        name: registry name (``fractrain``, ``pfq``, ``sbm``, ...) or a method object.
        model: any ``nn.Module`` of convolutions and linear layers; its inputs are tensors, or tuples, lists and dicts
            of them, the first of which has samples along its first axis. It is changed in place.
        seed: of stochastic rounding and gate initialisation.
        blocks: names of the gateable blocks, in the order data flows; found by themselves in this package's models
            and torchvision's residual networks.
        steps_per_epoch, total_steps, batch_size: needed only by methods whose schedule depends on them.
        strict: have the first forward pass refuse a model with products outside of layers that methods reach.
        example_inputs: have the products that the model's own code computes (``F.linear``, ``F.conv2d``, ``matmul``,
            ``einsum``, ``F.scaled_dot_product_attention``, ...) done by layers, too: those of one evaluation pass over
            these inputs (a tensor, a tuple of arguments, or a dict of them by name). None: they stay as they are.
        settings: of the method, as ``fractrain list methods`` shows them.

    Raises:
        ConfigError: unknown method or setting, a model the method does not fit, or one that has a method already.
    """
    if isinstance(name, nn.Module) or not isinstance(model, nn.Module):
        raise ConfigError(
            f"attach({type(name).__name__}, {type(model).__name__}): give the method first, then the model: "
            'attach("fractrain", model)'
        )
    if any(isinstance(layer, QuantLayer) for layer in model.modules()):
        raise ConfigError("this model has a method attached already: attach to a model that is made anew")
    method = registry.create(name, settings) if isinstance(name, str) else name
    ledger = Ledger()
    context = MethodContext(
        seed=seed, blocks=blocks, ledger=ledger, steps_per_epoch=steps_per_epoch, total_steps=total_steps,
        batch_size=batch_size,
    )  # fmt: skip
    return Session(method, model, context, strict, example_inputs)
