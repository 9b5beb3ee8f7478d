"""DFQ, dynamic fractional quantization: every sample picks each block's precision (FracTrain, section 3.2)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from fractrain.layers.convert import convert
from fractrain.methods.base import KeptLayers, Method, MethodContext, MethodSettings, Width, check_pairs
from fractrain.methods.block_call import entrance
from fractrain.methods.blocks import block_weights, gateable_blocks
from fractrain.methods.depthwise import (
    DEPTHWISE_BITS,
    DEPTHWISE_INERT,
    depthwise_precision,
    is_depthwise,
)
from fractrain.methods.gate import GateNetwork
from fractrain.methods.gated_block import Candidate, GatedBlock
from fractrain.numerics.precision import Precision, fractrain_precision
from fractrain.util.seeds import derive_seed
from fractrain.util.settings import ADDED

MOST_UNITS: Final = 1 << 14  # of a gate's layers; the authors' largest has 64


class DFQSettings(MethodSettings):
    """Settings of DFQ; defaults are the authors' for CIFAR."""

    removed: ClassVar[Mapping[str, str]] = {"compat": "what it switched is cp_batch=nominal and forward=authors"}

    target_cp: float = Field(3.0, gt=0, description="target cost, percent of 32x32-bit training (cp)")
    bits: tuple[int, ...] = Field((3, 4, 4, 6, 6), description="activation bits of the candidates")
    grad_bits: tuple[int, ...] = Field((6, 6, 8, 8, 12), description="error bits of the candidates")
    weight_bits: int = Field(4, ge=2, le=16, description="weight bits inside gated blocks")
    beta: float = Field(1e-3, ge=0, description="weight of the cost term")
    relax: float = Field(0.0, ge=0, description="half width of the band around the target with a tenth of the force")
    gate_hidden: int = Field(
        32, ge=0, le=MOST_UNITS, description="gate: size of the first projection; 0: a single one, to gate_embed"
    )
    gate_embed: int = Field(
        16, ge=1, le=MOST_UNITS, description="gate: size of the LSTM's input, and of its state by default"
    )
    gate_state: Annotated[int, Field(ge=1, le=MOST_UNITS)] | None = Field(
        None, description="gate: size of the LSTM's state", json_schema_extra=ADDED
    )
    depthwise_bits: Annotated[
        tuple[Width, Width],
        Field(
            description="depthwise convolutions: activation bits, error bits; not gated. Weights have weight_bits; "
            "the cost that is compared with the target takes them for as many bits as activations (authors')",
            json_schema_extra=ADDED,
        ),
    ] = DEPTHWISE_BITS
    running: float = Field(0.9, ge=0, lt=1, description="fraction of the old activation range kept (evaluation)")
    keep: KeptLayers = ()
    cp_batch: Literal["seen", "nominal"] = Field(
        "seen",
        description="what the cost of a batch is divided by before it is compared with the target: its samples (seen), "
        "or the recipe's batch size also for a smaller last batch (nominal; authors')",
        json_schema_extra=ADDED,
    )
    forward: Literal["all", "selected", "authors"] = Field(
        "all",
        description="training runs the live candidates on the whole batch (all); each sample only at its own "
        "precision (selected): faster, but another method: see GatedBlock for what it changes; or as the authors every "
        "candidate, so that BatchNorm's running statistics move once for each (authors)",
        json_schema_extra=ADDED,
    )

    @model_validator(mode="after")
    def _same_length(self) -> DFQSettings:
        check_pairs(self.bits, self.grad_bits, "candidate")
        return self


class DFQ(Method):
    """Gated precision: an LSTM gate picks activation and error bits per sample and block; weights 4 bits in blocks.

    A, E: affine per tensor, width from the gate, nearest / stochastic; W: affine per filter, nearest. Stem, classifier,
    gates and BatchNorm in floating point. The task loss gets a cost term whose sign drives cp to the target.
    """

    name = "dfq"
    version = 3  # products of candidates are added up in the order in which autograd meets them
    source = "Fu et al., FracTrain, NeurIPS 2020 (arXiv 2012.13113), section 3.2; constants from the authors' code"
    Settings: ClassVar[type[MethodSettings]] = DFQSettings
    contract_variations: ClassVar[Mapping[str, Any]] = {"gate_state": 8, "keep": ("groups.1.0.shortcut.0",)}
    contract_inert: ClassVar[Mapping[str, str]] = {
        **DEPTHWISE_INERT,
        "cp_batch": "differs in a smaller last batch alone, and there by what the cost term compares with the target",
    }

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize the layers inside the gateable blocks and put a gate before each."""
        s: DFQSettings = self.settings
        names = gateable_blocks(model, context)
        self._weights = block_weights(names, context)
        self._block_weights = torch.tensor(self._weights, dtype=torch.float64)
        candidates = [Candidate(a, s.weight_bits, e) for a, e in zip(s.bits, s.grad_bits, strict=True)]
        precisions = [fractrain_precision(c.a, c.w, c.e, s.running) for c in candidates]

        constant = depthwise_precision(s.depthwise_bits, s.running, s.weight_bits)

        def rule(name: str, layer: nn.Module) -> Precision | None:
            inside = any(name.startswith(f"{b}.") for b in names)
            return (constant if is_depthwise(layer) else precisions[0]) if inside else None

        convert(model, rule, self.state, keep_last=False, keep=s.keep)
        channels = [entrance(model.get_submodule(n), n).channels for n in names]
        gate = _seeded_gate(channels, len(candidates), s, context.seed)
        gate.to(next(model.parameters()).device)
        self._blocks: list[GatedBlock] = []
        for i, name in enumerate(names):
            block = GatedBlock(
                model.get_submodule(name), name, i, gate, candidates, precisions, self.state, s.forward == "authors",
                constant, s.forward == "selected",
            )  # fmt: skip
            model.set_submodule(name, block)
            self._blocks.append(block)
        # A Sequential would run the gate as one more layer: there it lives in the first gated block.
        (self._blocks[0] if isinstance(model, nn.Sequential) else model).add_module("precision_gate", gate)
        self._costs = torch.tensor([c.cost() for c in candidates])
        self._constant_cost = Candidate(s.depthwise_bits[0], s.depthwise_bits[0], s.depthwise_bits[1]).cost()
        self._cp: torch.Tensor | None = None  # of the last step, where that is recorded
        self._cp_due = False
        self._cp_sum: Any = 0.0
        self._cp_steps = 0
        return model

    def target(self) -> float:
        """Target cp in percent that is in force now."""
        return float(self.settings.target_cp)

    def targets(self) -> tuple[float, ...]:
        """All target cps of a run, in percent, in their order."""
        return (self.target(),)

    def remarks(self) -> list[str]:
        """Targets that no choice of the gates can reach."""
        costs = [self._block_costs(block, self._costs.cpu()) for block in self._blocks]
        weights = self._block_weights.cpu() / self._block_weights.cpu().sum()
        low = 100 / 3 * float(sum(w * c.min() for w, c in zip(weights, costs, strict=True)))
        high = 100 / 3 * float(sum(w * c.max() for w, c in zip(weights, costs, strict=True)))
        out = [f"{target:g}" for target in self.targets() if not low <= target <= high]
        if not out:
            return []
        return [f"target cp {', '.join(out)} % cannot be reached: the candidates cost {low:.3g} to {high:.3g} %"]

    def force(self, cp: torch.Tensor) -> torch.Tensor:
        """Sign and size of the cost term for the cp (percent, 0-dim) of the batch just seen."""
        low, mid, high = self.target() - self.settings.relax, self.target(), self.target() + self.settings.relax
        weak = torch.where(cp < mid, -0.1, 0.1)
        return torch.where(cp < low, -1.0, torch.where(cp >= high, 1.0, weak))

    def extra_loss(self) -> torch.Tensor | None:
        """Cost term: force * beta * (weighted sum over blocks and samples of the chosen cost), not divided by batch."""
        masks = [b.mask for b in self._blocks]
        if any(m is None for m in masks) or not self._blocks[0].training:
            return None
        # Both stay on the device from the first step on: a copy in every step would make the host wait for it.
        costs = self._costs = self._costs.to(masks[0])
        weights = self._block_weights = self._block_weights.to(costs)
        each = [self._block_costs(b, costs) for b in self._blocks]
        per_block = torch.stack([(m @ c).sum() for m, c in zip(masks, each, strict=True)])  # type: ignore[operator]
        mean, full = self._scale()
        total: torch.Tensor = (per_block * weights).sum() / mean
        batch = self.state.batch_samples or masks[0].shape[0]  # type: ignore[union-attr]
        if self.settings.cp_batch == "nominal":
            batch = self.context.batch_size
        cp = 100 * self.context.reduce_sum(total.detach()) / (batch * full)
        self._note(cp)
        beta: float = self.settings.beta
        return beta * total * self.force(cp)

    def _scale(self) -> tuple[float, float]:
        """What costs are in units of: mean weight of a block, and a sample's 100 % in that unit.

        As in the authors' scripts neither sees depthwise convolutions at full precision: the mean is over the other
        layers, and the 100 % has them at the constant that they cost.
        """
        shares = [b.constant_share for b in self._blocks]
        gated = sum(w * (1 - s) for w, s in zip(self._weights, shares, strict=True))
        held = sum(w * s for w, s in zip(self._weights, shares, strict=True))
        mean = gated / len(shares)
        return mean, (3 * gated + self._constant_cost * held) / mean

    def _block_costs(self, block: GatedBlock, costs: torch.Tensor) -> torch.Tensor:
        """Cost ``[K]`` of the candidates in one block: depthwise convolutions are a constant part of it."""
        share = block.constant_share
        return costs * (1 - share) + share * self._constant_cost if share else costs

    def on_step_end(self, step: int, loss: torch.Tensor, extra: torch.Tensor | None = None) -> None:
        """Add up the cp of a recorded step, in whose replays nothing else of the method runs."""
        if self._cp is not None and (self.state.recorded or self._cp_due):
            self._cp_sum = self._cp_sum + self._cp
            self._cp_steps += 1
        self._cp_due = False

    def _note(self, cp: torch.Tensor) -> None:
        """Add up the cp of a step, or leave it to the step's end where a replay finds it."""
        self._cp_due = self.state.recorded
        if not self._cp_due:
            self._cp_sum = self._cp_sum + cp
            self._cp_steps += 1
        elif self._cp is None:
            self._cp = cp.clone()
        else:
            self._cp.copy_(cp)  # in place: a recorded step writes where it is read

    def step_key(self, step: int) -> Hashable | None:
        """The target, which the cost term compares with; ``forward=selected`` asks which sample chose what."""
        return None if self.settings.forward == "selected" else self.target()

    def on_epoch_start(self, epoch: int) -> None:
        """Start a new mean of cp."""
        self._cp_sum, self._cp_steps = 0.0, 0

    def metrics(self) -> dict[str, float]:
        """Target and mean cp of the epoch's batches."""
        out = {"target_cp": self.target()}
        if self._cp_steps:
            out["gate_cp"] = float(self._cp_sum) / self._cp_steps
        return out

    def state_dict(self) -> dict[str, Any]:
        """Mean cp so far in this epoch."""
        return {"cp_sum": torch.as_tensor(self._cp_sum).cpu(), "cp_steps": self._cp_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        self._cp_steps = state["cp_steps"]
        device = self._costs.device if not self._blocks else next(self._blocks[0].block.parameters()).device
        self._cp_sum = state["cp_sum"].to(device) if self._cp_steps else 0.0


def _seeded_gate(channels: list[int], candidates: int, settings: DFQSettings, seed: int) -> GateNetwork:
    """A gate initialised from the run's seed, whatever was drawn before; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "gate"))
        return GateNetwork(channels, candidates, settings.gate_hidden, settings.gate_embed, settings.gate_state)
