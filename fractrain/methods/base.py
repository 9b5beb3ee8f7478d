"""What a method is: it turns a plain model into a low-precision one and steers it while it trains.

The engine, or any training loop of your own, calls the hooks in this order::

    model = method.prepare(model, context)
    for epoch in range(epochs):
        method.on_epoch_start(epoch)
        for batch in loader:
            if method.skip_step(step):                  # the mini-batch is dropped, the step counts
                continue
            method.on_step_start(step)
            loss = criterion(model(x), y)
            extra = method.extra_loss()                 # None, or a scalar tensor
            (loss if extra is None else loss + extra).backward()
            optimizer.step()                            # optimizer = method.optimizer(model.parameters(), recipe)
            method.on_step_end(step, loss, extra)       # loss and extra are detached here
        method.on_epoch_end(epoch, mean_loss)
    # evaluation: model.eval(); nothing else is needed
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
import torch
from torch import nn

from fractrain.cost.ledger import Ledger
from fractrain.layers.convert import quant_layers
from fractrain.layers.state import QuantState, ReduceLimits
from fractrain.methods.optimizer import make_optimizer
from fractrain.methods.optimizer_recipe import OptimizerRecipe
from fractrain.numerics.formats import MAX_BITS, MIN_BITS
from fractrain.numerics.precision import FLOAT_BITS
from fractrain.util.errors import ConfigError
from fractrain.util.settings import ADDED, check_sizes


def _width(value: int) -> int:
    if value != FLOAT_BITS and not MIN_BITS <= value <= MAX_BITS:
        raise ValueError(f"must be {MIN_BITS}..{MAX_BITS} bits, or {FLOAT_BITS} for floating point")
    return value


def check_pairs(bits: Sequence[int], grad_bits: Sequence[int], what: str) -> None:
    """Refuse widths of activations and of errors that are no pairs, or that no grid has.

    Args:
        what: a pair is called so: ``stage``.

    Raises:
        ValueError: so it is.
    """
    if len(bits) != len(grad_bits) or not bits:
        raise ValueError(f"bits has {len(bits)} {what}s, grad_bits {len(grad_bits)}")
    for width in (*bits, *grad_bits):
        if not MIN_BITS <= width <= MAX_BITS:
            raise ValueError(f"{what} widths must be {MIN_BITS}..{MAX_BITS} bits, got {width}")


KeptLayers = Annotated[
    tuple[str, ...],
    pydantic.Field(
        description="layers left in floating point and out of cp, by names or patterns such as *.downsample.0",
        json_schema_extra=ADDED,
    ),
]
"""A setting that names layers a method leaves alone."""

Layers = Annotated[
    Literal["convolutions", "all"],
    pydantic.Field(
        description="what is quantized in a model with convolutions: these, or linear layers and products of "
        "activations as well, all but the last layer (for models such as ViT, Swin, ConvNeXt)",
        json_schema_extra=ADDED,
    ),
]
"""A setting of methods whose papers quantize convolutions alone."""

LAYERS_INERT = {"layers": "acts on models that have linear layers or attention before the last layer"}

Width = Annotated[int, pydantic.AfterValidator(_width)]
"""A setting that is an operand width: 2..16 bits, or 32 (not quantized)."""


class MethodSettings(pydantic.BaseModel):
    """Base of every method's settings: frozen, typed, unknown keys refused; part of the run id.

    Attributes:
        removed: settings of earlier releases, each with what to say instead.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
    removed: ClassVar[Mapping[str, str]] = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _none_of_the_removed(cls, values: Any) -> Any:
        for name, instead in cls.removed.items():
            if isinstance(values, Mapping) and name in values:
                raise ValueError(f"there is no setting {name} any more, got {name}={values[name]!r}: {instead}")
        return values

    @pydantic.model_validator(mode="after")
    def _of_sense(self) -> Self:
        check_sizes(self)
        return self


@dataclass(frozen=True)
class Variation:
    """How the contract (:mod:`fractrain.testing`) changes a setting to see that it acts.

    Attributes:
        value: the setting's other value.
        given: settings that both runs, with and without ``value``, have on top of the usual ones.
    """

    value: Any
    given: Mapping[str, Any] = field(default_factory=dict)


def _alone(value: torch.Tensor) -> torch.Tensor:
    return value


@dataclass
class MethodContext:
    """What a method may know of the run it is in.

    Attributes:
        seed: the run's seed; all randomness of the method derives from it.
        steps_per_epoch, total_steps: length of training in optimizer steps.
        batch_size: nominal batch size.
        blocks: names of the gateable blocks; empty means: ask the model.
        block_weights: weight of each block in cp (paper: 1 for ResNets, block FLOPs for MobileNetV2); empty = equal.
        ledger: where executed work is counted.
        world: number of processes the run is on; each sees its share of every batch, and gradients are added up. A term
            of :meth:`Method.extra_loss` that is no sum over samples must be divided by it.
        reduce_sum: sums a tensor (without its graph) over the processes; to be called by all of them alike.
        reduce_limits: for the layers, see :class:`fractrain.layers.state.QuantState`.
    """

    seed: int = 0
    steps_per_epoch: int = 1
    total_steps: int = 1
    batch_size: int = 128
    blocks: Sequence[str] = ()
    block_weights: Sequence[float] = ()
    ledger: Ledger = field(default_factory=Ledger)
    world: int = 1
    reduce_sum: Callable[[torch.Tensor], torch.Tensor] = _alone
    reduce_limits: ReduceLimits | None = None


class Method:
    """Base class of all methods. Subclass it, give it ``name`` and ``Settings``, and override what you need.

    The first line of the subclass's docstring is its one-line description everywhere.

    Attributes:
        settings: the validated settings.
        state: step, seed and ledger shared by all quantized layers (set by :meth:`prepare`).
        master_weights, optimizer_state: number formats for the precision card; give another text where the method
            keeps them in something else than float32.
        steps_alike: whether all steps do the same on the device, without asking it for anything: then they can be
            recorded on a GPU (:meth:`step_key`).
        own_samples: why each process of a run must keep ranges and BatchNorm statistics of its own: because blocks see
            samples that differ in number, or in whether there are any, from process to process; empty: they are shared.
        contract_settings: settings under which all that the method does happens within a few steps; the contract uses
            them to test resuming, determinism and precision.
        contract_variations: for settings that the contract cannot vary by their type alone: another value, or a
            :class:`Variation`.
        contract_inert: settings that cannot act within a few steps, each with the reason.
        contract_costless: settings that are widths, but of no operand of a product, each with what they are of.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    steps_alike: ClassVar[bool] = False
    version: ClassVar[int] = 1  # raise it when results change: it is part of the run id
    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    master_weights: ClassVar[str] = "float32"
    optimizer_state: ClassVar[str] = "float32"
    own_samples: ClassVar[str] = ""
    contract_settings: ClassVar[Mapping[str, Any]] = {}
    contract_variations: ClassVar[Mapping[str, Any]] = {}
    contract_inert: ClassVar[Mapping[str, str]] = {}
    contract_costless: ClassVar[Mapping[str, str]] = {}

    def __init__(self, settings: MethodSettings | None = None, **values: Any) -> None:
        if settings is not None and values:
            raise TypeError(f"{type(self).__name__}: give settings, or values for them, not both")
        self.settings: Any = settings if settings is not None else self.Settings(**values)
        self.state = QuantState()
        self.context = MethodContext()

    @classmethod
    def unsuitable(cls, model: nn.Module) -> str | None:
        """Why the method makes no sense on a (plain) model, in a clause fit for a table; None where it does.

        :meth:`prepare` refuses such a model; tables skip the pair and print the reason.
        """
        return None

    # -- to override -------------------------------------------------------------------------------------------------

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Swap layers and attach gates; return the model (the same object or a wrapper)."""
        return model

    def optimizer(self, params: Iterable[nn.Parameter], recipe: OptimizerRecipe) -> torch.optim.Optimizer:
        """Make the optimizer; by default the recipe's. For weights or optimizer states in low precision.

        A group's ``lr`` stays in proportion to the recipe's: at every step it is multiplied by what the schedule says.
        What the optimizer keeps must be in its ``state_dict()``, as tensors and plain values; randomness comes from
        ``self.state.noise(name)`` alone, so that all processes of a run, and a resumed one, round alike.

        Args:
            params: all parameters of the prepared model.
            recipe: kind of optimizer, learning rate, momentum, weight decay.
        """
        return make_optimizer(params, recipe)

    def on_epoch_start(self, epoch: int) -> None:
        """Before the first step of an epoch."""

    def on_step_end(self, step: int, loss: torch.Tensor, extra: torch.Tensor | None = None) -> None:
        """After the optimizer step; ``loss`` (task) and ``extra`` are detached 0-dim tensors, possibly on a device."""

    def on_epoch_end(self, epoch: int, loss: float) -> None:
        """After an epoch (one evaluation period); ``loss`` is the mean task loss of its steps.

        It is nan after an epoch whose steps were all skipped.
        """

    def skip_step(self, step: int) -> bool:
        """Whether to drop the mini-batch of a step; asked before anything else of the step happens.

        If so the step is counted (learning rate, data and epochs move on) and nothing else is done: no other hook, no
        forward or backward pass, no update of weights or momentum, no sample in the ledger. Must be a pure function of
        the seed and the step.
        """
        return False

    def step_key(self, step: int) -> Hashable | None:
        """What a step does on the device depends on, beside weights, data, learning rate and the step's number.

        A step may be recorded on a GPU and replayed as long as this does not change; then no code of the method runs
        between :meth:`on_step_start` and :meth:`on_step_end`. None: steps cannot be recorded, because what they do
        depends on what the host reads from the device, or nobody has made sure that it does not.
        """
        return () if self.steps_alike else None

    def extra_loss(self) -> torch.Tensor | None:
        """A term to add to the loss of the forward pass just made, or None."""
        return None

    def metrics(self) -> dict[str, float]:
        """Figures worth a line in the run's metrics (for example the PFQ stage)."""
        return {}

    def remarks(self) -> Sequence[str]:
        """What the user should know of these settings on this model, a sentence each; asked after :meth:`prepare`.

        For example, a target that cannot be reached.
        """
        return ()

    def state_dict(self) -> dict[str, Any]:
        """State that is not in the model: plain values and tensors only (loadable with ``weights_only=True``)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, layers' precision included."""

    # -- fixed -------------------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module, context: MethodContext | None = None) -> nn.Module:
        """Turn ``model`` into its low-precision form and return it.

        Args:
            model: a plain FP32 model; its parameters are kept (and shared), its layers may be replaced in place.
            context: what is known of the run; the default suits a loop of your own.

        Raises:
            ConfigError: the method does not fit the model.
        """
        reason = self.unsuitable(model)
        if reason is not None:
            raise ConfigError(f"{self.name} does not fit {type(model).__name__}: {reason}")
        self.context = context or MethodContext()
        self.state = QuantState(seed=self.context.seed, ledger=self.context.ledger)
        if self.context.world > 1:
            self.state.reduce_sum, self.state.reduce_limits = self.context.reduce_sum, self.context.reduce_limits
        model = self.convert(model, self.context)
        kept = getattr(self.settings, "keep", ())
        if kept:  # where it is empty, ledgers are those of before there was the setting
            sites = [layer.site for layer in quant_layers(model)]
            self.context.ledger.meta["outside_cp"] = [s for s in sites if any(fnmatch.fnmatchcase(s, p) for p in kept)]
        return model

    def on_step_start(self, step: int) -> None:
        """Before the forward pass of a step: sets the step that stochastic rounding depends on."""
        self.state.step = step

    @classmethod
    def makes_optimizer(cls) -> bool:
        """Whether it has an optimizer of its own: then its steps are not recorded, and another one would not do."""
        return cls.optimizer is not Method.optimizer

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""
