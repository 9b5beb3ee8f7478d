"""slu: selective layer update (E2-Train). A gate decides for every sample and residual block whether the block runs.

Operands: floating point by default; with ``bits``, ``weight_bits``, ``grad_bits`` those of ``static``. Gates (as in
SkipNet: pooled features -> 10 -> LSTM(10, 10) shared along depth -> 1 -> sigmoid), classifier and BatchNorm in floating
point.

Block output = m * block(x) + (1 - m) * shortcut(x), where m is 1 with the gate's probability p, drawn anew for every
step, block and sample (``threshold=skipnet``: m = [p > 0.5]), and its gradient goes straight through to p. The first
block always runs, and so does the shortcut of a block that changes the shape (1x1 convolution and BatchNorm, once, for
all samples). Blocks without a shortcut (in MobileNetV2) always run. Evaluation decides as training does, by drawing or
by threshold, as both sources do; its draws are the same in every evaluation. The loss gets
``reg * beta * (sum of all m)``, with reg = -1 while at most ``minimum`` percent of the gates are open in the batch and
+1 otherwise. ``smd`` drops whole mini-batches with that probability.

A closed block has no forward pass, no backward pass and no update for the sample: it runs on the open samples alone,
and the ledger counts its products at width 0 for the others (no cost, but part of cp's 100 %).

Departures from E2-Train's code (ours):

* it computes every block for all samples and multiplies by m, so that BatchNorm sees all samples and the gate learns
  from closed blocks, too. Here BatchNorm sees the open samples (its running statistics where there is only one), and
  the task loss reaches the gates of open samples only, divided by p (where drawn), so that its mean is that of a gate
  that learns from all samples. ``closed=computed`` trains as the authors do; the ledger then counts open blocks only,
  as they do.
* ``minimum`` is 100 and ``beta`` 1e-5 there: a weak pull that always opens gates. With 50 and 1e-3 (beta as in DFQ) the
  share of open gates keeps to the minimum, which a comparison at equal cost needs.
* a dropped mini-batch leaves the weights alone; there, momentum and weight decay still move them.
* the gates' projections have a bias (torch's start value); there, they have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from fractrain.cost.ledger import Entry, Ledger
from fractrain.layers.conv_linear import QuantLayer
from fractrain.layers.convert import convert_body, quant_layers
from fractrain.layers.eager import eager
from fractrain.layers.recomputation import recomputing
from fractrain.layers.state import QuantState
from fractrain.methods.base import Method, MethodContext, MethodSettings, Variation, Width
from fractrain.methods.block_call import BlockWrapper, Call, entrance, pooled
from fractrain.methods.blocks import gateable_blocks
from fractrain.methods.gate import GateNetwork
from fractrain.numerics.precision import fractrain_precision
from fractrain.numerics.stochastic_rounding import noise_key, uniform
from fractrain.util.errors import ConfigError
from fractrain.util.seeds import derive_seed
from fractrain.util.settings import instead_of

EMBED = 10  # SkipNet's gate: size of projection and LSTM


class SLUSettings(MethodSettings):
    """Settings of slu; as E2-Train ran it: closed=computed, minimum=100, beta=1e-5."""

    removed: ClassVar[Mapping[str, str]] = {"compat": "to train as E2-Train does is closed=computed"}

    minimum: float = Field(50.0, ge=0, le=100, description="percent of open gates up to which the cost term opens them")
    beta: float = Field(1e-3, ge=0, description="weight of the cost term")
    threshold: Literal["bernoulli", "skipnet"] = Field("bernoulli", description="open where p > U, or where p > 0.5")
    smd: float = Field(0.0, ge=0, lt=1, description="probability to drop a mini-batch (E2-Train: 0.5)")
    bits: Width = Field(32, description="activation bits, and weight bits unless weight_bits is given")
    grad_bits: Width = Field(32, description="error bits")
    weight_bits: Width | None = Field(None, description="weight bits; none: as many as activation bits")
    running: float = Field(0.9, ge=0, lt=1, description="fraction of the old activation range kept (evaluation)")
    closed: Literal["skipped", "computed"] = Field(
        "skipped",
        description="training leaves closed blocks out (skipped), or computes them as E2-Train and multiplies by zero, "
        "so that BatchNorm and gates learn from them (computed)",
        json_schema_extra=instead_of("compat", "none"),
    )


class SLU(Method):
    """Selective layer update: per sample, a gate skips residual blocks altogether; the rest runs in floating point.

    A, W, E in float32, or at ``bits`` / ``weight_bits`` / ``grad_bits`` with the static quantizer.
    """

    name = "slu"
    version = 2  # gates start as E2-Train's
    source = "Wang et al., E2-Train, NeurIPS 2019 (arXiv 1910.13349), authors' code; gate: SkipNet (arXiv 1711.09485)"
    Settings = SLUSettings
    own_samples = "its blocks run on the open samples of a batch only"
    contract_variations = {"minimum": 1.0, "weight_bits": 4, "running": Variation(0.1, given={"bits": 4})}

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize all convolutions and put a gate before every block but the first.

        Raises:
            ConfigError: a block has no shortcut that is known here, or there is nothing to gate.
        """
        s: SLUSettings = self.settings
        names = gateable_blocks(model, context)
        places = {name: shortcut_place(model.get_submodule(name), name) for name in names[1:]}
        gated = [name for name, place in places.items() if place is not None]
        if not gated:
            raise ConfigError(f"slu has nothing to gate in {len(names)} blocks: the first one always runs")
        precision = fractrain_precision(s.bits, s.weight_bits or s.bits, s.grad_bits, s.running)
        convert_body(model, precision, self.state)
        gate = _seeded_gate([entrance(model.get_submodule(n), n).channels for n in gated], context.seed)
        gate.to(next(model.parameters()).device)
        self._blocks: list[SkipBlock] = []
        for i, name in enumerate(gated):
            block = SkipBlock(model.get_submodule(name), name, i, places[name] or "", gate, self.state, s)
            model.set_submodule(name, block)
            self._blocks.append(block)
        # A Sequential would run the gate as one more layer: there it lives in the first gated block.
        (self._blocks[0] if isinstance(model, nn.Sequential) else model).add_module("skip_gate", gate)
        self._open_sum: Any = 0.0
        self._open_steps = 0
        return model

    def skip_step(self, step: int) -> bool:
        """Stochastic mini-batch dropping."""
        key = noise_key(self.state.seed, step, "smd")
        return bool(self.settings.smd) and float(uniform(key, torch.zeros(1, dtype=torch.int64))) < self.settings.smd

    def extra_loss(self) -> torch.Tensor | None:
        """Cost term: reg * beta * sum of all masks, not divided by the batch."""
        masks = [b.mask for b in self._blocks if b.mask is not None]
        if len(masks) < len(self._blocks) or not self._blocks[0].training:
            return None
        total = torch.stack(masks).sum()
        samples = self.state.batch_samples or masks[0].shape[0]
        share = 100 * self.context.reduce_sum(total.detach()) / (len(masks) * samples)
        self._open_sum = self._open_sum + share
        self._open_steps += 1
        beta: float = self.settings.beta
        return beta * total * torch.where(share <= self.settings.minimum, -1.0, 1.0)

    def on_epoch_start(self, epoch: int) -> None:
        """Start a new mean of the share of open gates."""
        self._open_sum, self._open_steps = 0.0, 0

    def metrics(self) -> dict[str, float]:
        """Mean share of open gates in the epoch's batches, percent."""
        return {"open_percent": float(self._open_sum) / self._open_steps} if self._open_steps else {}

    def state_dict(self) -> dict[str, Any]:
        """Mean share of open gates so far in this epoch."""
        return {"open_sum": torch.as_tensor(self._open_sum).cpu(), "open_steps": self._open_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        self._open_steps = state["open_steps"]
        device = next(self._blocks[0].block.parameters()).device
        self._open_sum = state["open_sum"].to(device) if self._open_steps else 0.0


class Shortcut(nn.Module):
    """Takes the place of a block's projection, so that it runs once per step: for all samples, before the block."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.ready: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what was computed beforehand for the samples ``x``, else compute it."""
        return self.inner(x) if self.ready is None else self.ready


class SkipBlock(BlockWrapper):
    """A residual block that runs on the samples whose gate is open; the others take its shortcut.

    Other arguments go on to the block, tensors with as many rows as there are samples with the open samples' alone.

    Args:
        block: the block, its layers already quantized.
        name: its name in the model.
        index: position among the gated blocks.
        place: attribute of the block that holds its projection; empty for an identity shortcut.
        gate: gate network shared by all blocks.
        state: of the quantized layers.
        settings: of the method.

    Attributes:
        mask: ``[N]``, 0 or 1, of the last forward pass; its gradient goes to the gate's probability.
    """

    def __init__(
        self, block: nn.Module, name: str, index: int, place: str, gate: GateNetwork, state: QuantState,
        settings: SLUSettings,
    ) -> None:  # fmt: skip
        super().__init__(block, name, index, gate, state)
        self.place = place
        self.settings = settings
        self.mask: torch.Tensor | None = None
        if place:
            setattr(block, place, Shortcut(getattr(block, place)))

    def __getstate__(self) -> dict[str, Any]:
        """Without the last mask: it belongs to a graph, and graphs can be neither copied nor pickled."""
        return {**self.__dict__, "mask": None}

    @eager
    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return mask * block(x) + (1 - mask) * shortcut(x), ``[N, ...]``; the block runs on open samples only."""
        call = self.call(args, kwargs)
        x = call.input
        if x.shape[0] == 0:
            raise ConfigError(f"{self.name}: empty batch (input shape {tuple(x.shape)}); drop empty batches")
        p = torch.sigmoid(self._gate[0].logits(self.index, pooled(x, call.axis))[:, 0])
        hard = (p.detach() > self._thresholds(p)).to(p.dtype)
        straight = p - p.detach()  # 0, with the gradient of p
        if not recomputing():
            self.mask = hard + straight
        shortcut = getattr(self.block, self.place) if self.place else None
        base = x if shortcut is None else shortcut.inner(x)
        rows = hard.nonzero().squeeze(1)
        self._count(call, base, len(rows))
        computed = self.settings.closed == "computed" and self.training
        if computed:
            rows = torch.arange(len(hard), device=x.device)
        if not len(rows):
            return base
        straight = straight[rows]
        if self.settings.threshold == "bernoulli" and not computed:
            straight = straight / p.detach()[rows]  # each open sample speaks for 1 / p of them
        return self._mixed(call, base, rows, hard[rows] + straight)

    def _thresholds(self, p: torch.Tensor) -> torch.Tensor:
        """What the probabilities must exceed: a pure function of (seed, step, block, sample)."""
        if self.settings.threshold == "skipnet":
            return torch.full_like(p, 0.5)
        s = self.state
        step, phase = (s.step, "train") if self.training else (0, "eval")
        key = noise_key(s.seed, step, f"{self.name}.gate.{phase}", s.sample_offset)
        return uniform(key, torch.arange(len(p), device=p.device)).to(p.dtype)

    def _mixed(self, call: Call, base: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run the block on ``rows`` and mix by their ``mask``; the other samples take the shortcut ``base``."""
        x = call.input
        every = len(rows) == len(x)
        part_base = base if every else base[rows]
        with ExitStack() as stack:
            stack.enter_context(_uncounted(self.state.ledger))
            if self.training and len(rows) == 1 < len(x):
                stack.enter_context(_running_statistics(self.block))
            part = self._run(call, x if every else x[rows], part_base, None if every else rows)
        if part.shape != part_base.shape:
            raise ConfigError(
                f"block {self.name!r} turns {tuple(x.shape[1:])} into {tuple(part.shape[1:])}, its shortcut into "
                f"{tuple(base.shape[1:])}: slu cannot skip it; leave it out of the blocks"
            )
        m = mask.to(part.dtype).view(-1, *([1] * (x.dim() - 1)))
        mixed = m * part + (1 - m) * part_base
        return mixed if every else base.index_put((rows,), mixed)

    def _run(self, call: Call, x: torch.Tensor, base: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """The block on some samples (None: all), given the projection of these samples."""
        shortcut = getattr(self.block, self.place) if self.place else None
        if shortcut is not None:
            shortcut.ready = base
        try:
            part = call.run(self.block, x) if rows is None else call.run_rows(self.block, x, rows)
        finally:
            if shortcut is not None:
                shortcut.ready = None
        if not isinstance(part, torch.Tensor):
            raise ConfigError(
                f"{self.title} returns {type(part).__name__}, and of a sample that skips it there is its shortcut "
                "alone: slu needs blocks that return one tensor; leave it out: attach(..., blocks=[...])"
            )
        return part

    # -- accounting --------------------------------------------------------------------------------------------------

    def _count(self, call: Call, base: torch.Tensor, run: int) -> None:
        ledger = self.state.ledger
        if not ledger.enabled:
            return
        again = recomputing()
        train = (self.training or self.state.trains) and torch.is_grad_enabled() and not again
        steered = train and self.training
        learns = "".join("G" if m.learns else "-" for m in quant_layers(self.block))
        x = call.input
        work = f"{self.name}|{call.shape}|{f'{learns}{x.requires_grad}' if train else 'FW'}"
        skipped, gate = len(x) - run, self._gate[0]
        with ledger.during("recompute" if again else ledger.phase):
            ledger.count(work, run, lambda: self._entries(call, base, train))
            if skipped:
                ledger.count(
                    f"{work}|skipped", skipped,
                    lambda: [e._replace(bits1=0, bits2=0) for e in self._entries(call, base, train)],
                )  # fmt: skip
            ledger.count(f"{self.name}.gate|{steered}", len(x), lambda: gate.entries(self.index, self.name, steered))

    def _entries(self, call: Call, base: torch.Tensor, train: bool) -> list[Entry]:
        """What one sample costs in this block without its projection: found by one sample in evaluation mode."""
        found: list[Entry] = []

        def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            assert isinstance(layer, QuantLayer)
            eb, gc = (train and wanted for wanted in layer.wants(*inputs))
            found.extend(layer.entries(layer.precision, layer.sample_macs(output) * len(output), eb, gc))

        modes = {m: m.training for m in self.block.modules()}
        hooks = [layer.register_forward_hook(note) for layer in quant_layers(self.block)]
        try:
            self.block.eval()
            # Activation checkpointing must not take what this pass keeps for what the block keeps.
            with _uncounted(self.state.ledger), saved_tensors_hooks(lambda t: t, lambda t: t):
                one = call.input[:1].detach().requires_grad_(call.input.requires_grad)
                self._run(call, one, base[:1].detach(), torch.zeros(1, dtype=torch.int64, device=one.device))
        finally:
            for hook in hooks:
                hook.remove()
            for m, training in modes.items():
                m.training = training
        return found


@contextmanager
def _uncounted(ledger: Ledger) -> Iterator[None]:
    """The block counts its layers itself."""
    before, ledger.enabled = ledger.enabled, False
    try:
        yield
    finally:
        ledger.enabled = before


@contextmanager
def _running_statistics(block: nn.Module) -> Iterator[None]:
    """BatchNorm uses its running statistics: those of one sample are no batch statistics."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
    for m in norms:
        m.training = False
    try:
        yield
    finally:
        for m in norms:
            m.training = True


def shortcut_place(block: nn.Module, name: str) -> str | None:
    """Find the shortcut of a residual block: the attribute of its projection, "" for an identity, None for no shortcut.

    Known are blocks with an attribute ``shortcut`` or ``downsample`` (None, ``nn.Identity`` or an empty ``Sequential``
    mean identity; torchvision's ResNets and this package's) and ``use_res_connect`` (MobileNetV2).

    Raises:
        ConfigError: another kind of block.
    """
    for place in ("shortcut", "downsample"):
        inner = getattr(block, place, False)
        if inner is None or isinstance(inner, nn.Identity) or (isinstance(inner, nn.Sequential) and not len(inner)):
            return ""
        if isinstance(inner, nn.Module):
            return place
    connected = getattr(block, "use_res_connect", None)
    if isinstance(connected, bool):
        return "" if connected else None
    raise ConfigError(
        f"slu finds no shortcut in block {name!r} ({type(block).__name__}): it skips residual blocks with an attribute "
        "shortcut, downsample or use_res_connect"
    )


def _seeded_gate(channels: list[int], seed: int) -> GateNetwork:
    """A gate that is a function of the run's seed; torch's global generator is left as it was.

    It starts as E2-Train's: projections as FracTrain's gate, LSTM and head as torch has them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "gate"))
        gate = GateNetwork(channels, candidates=1, hidden=0, embed=EMBED)
        gate.head.reset_parameters()
        return gate
