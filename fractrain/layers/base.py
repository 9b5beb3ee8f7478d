"""What the two quantized layers share: precision, ranges, weight cache, rounding noise, accounting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import nn

from fractrain.cost.counting import count_layer, entries_for
from fractrain.cost.ledger import Entry
from fractrain.layers import tensor_hints as known_range
from fractrain.layers.delayed import adopt_histories, delayed_limits, prepare_histories, remember
from fractrain.layers.eager import eager
from fractrain.layers.number_types import in_wide_types, widened
from fractrain.layers.product_layer import Activation, ProductLayer
from fractrain.layers.products import run_products
from fractrain.layers.recomputation import recomputing
from fractrain.layers.state import QuantState
from fractrain.layers.tensor_hints import version_of
from fractrain.numerics.backend import Kept, Quantized
from fractrain.numerics.formats import Bits, Limits, PerTensor, Place
from fractrain.numerics.measured import quantize_measured
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.quantize import quantize
from fractrain.numerics.running_range import all_finite, update_range
from fractrain.numerics.stochastic_rounding import NoiseKey
from fractrain.util.errors import ConfigError, NonFiniteError


class QuantLayer(ProductLayer):
    """What :class:`QuantConv2d` and :class:`QuantLinear` share: precision, ranges, weight cache, accounting.

    Products of quantized operands are computed in float32, or in float64 where the input is: in a model or under
    autocast in a narrower type the operands are widened first. The output has the input's type.

    Attributes:
        precision: assign a new one to change it, also while training.
        site: name of the layer in its model (set by :func:`fractrain.layers.convert.convert`).
        running_low, running_high: range of the input used in evaluation, 0-dim buffers.
        observer: called as ``observer(layer, operand name, Operand, original, quantized values)`` when set; for
            probes and tests.
    """

    groups = 1
    axes = 2  # least axes of the input
    gated = False  # whether a gated block sets the precision anew for each of its passes
    paired = False  # whether the operand in the weight's place has a sample axis, too
    running_low: torch.Tensor
    running_high: torch.Tensor
    running_steps: torch.Tensor

    def take_over(self, layer: nn.Module) -> None:
        """Have the very parameters, buffers, hooks and attributes of the layer that this one replaces."""
        for name, value in layer.__dict__.items():
            self.__dict__[name] = value.copy() if isinstance(value, dict) else value

    def init_quant(
        self, precision: Precision, state: QuantState, site: str, device: torch.device | None = None
    ) -> None:
        """Attach precision and shared state (called once, by the constructors); ``device``: None: the weight's."""
        self.precision = precision
        self.state = state
        self.site = site
        self.observer: Any = None
        self.backward_observer = None
        self.shapes: dict[str, torch.Size] = {}  # of A, W and E in the last forward pass
        self.work_key: tuple[Any, str] = (None, "")  # ledger work item at the present precision
        self.tile_work: dict[str, list[Any]] = {}  # the same by product, where widths vary from tile to tile
        self._weights: dict[Any, tuple[torch.Tensor | None, Kept | None, Bits]] = {}
        self._weights_of: Any = None
        self._without_graph: int | None = None  # step of the last training pass, if it was under no_grad
        weight = getattr(self, "weight", None)
        device = device if weight is None else weight.device
        for name in ("running_low", "running_high"):
            self.register_buffer(name, torch.zeros((), device=device))
        self.register_buffer("running_steps", torch.zeros((), dtype=torch.int64, device=device))
        prepare_histories(self, self.history_names(precision))

    @property
    def device(self) -> torch.device:
        """Where the layer is."""
        return self.running_low.device

    @property
    def keeps_forward_operand(self) -> bool:
        """Whether what FW multiplies is kept for GC."""
        return self.precision.gc_a.same_as(self.precision.fw_a)

    @property
    def learns(self) -> bool:
        """Whether the weight is trained."""
        return bool(self.weight.requires_grad)

    def effective(self, precision: Precision) -> Precision:
        """What a precision means for this layer (as it stands; another kind of layer may read it otherwise)."""
        return precision

    def wants(self, *inputs: torch.Tensor) -> tuple[bool, bool]:
        """Whether a training step with these inputs runs EB and GC."""
        return inputs[0].requires_grad, self.weight.requires_grad

    def history_names(self, precision: Precision) -> dict[str, Operand]:
        """Operands with delayed scaling by the name of their history: as they are quantized, uses alike only once."""
        own = precision.operands()
        shared = {"gc_a": "fw_a", "eb_w": "fw_w"}
        kept = {n: o for n, o in own.items() if not (n in shared and o.same_as(own[shared[n]])) and n[-1] != "e"}
        errors = {"E": own["gc_e"]} if own["eb_e"].same_as(own["gc_e"]) else {"E.gc": own["gc_e"], "E.eb": own["eb_e"]}
        return {n.replace(".", "_"): o for n, o in {**kept, **errors}.items() if o.history}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        adopt_histories(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def matrix_rows(self, x: torch.Tensor) -> int:
        """Rows of each of the matrices that an operand stacks in its second last axis; 0: it is one matrix."""
        return 0

    def running_range(self, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Low, high and number of updates of an operand's running range; None for operands that have none."""
        return (self.running_low, self.running_high, self.running_steps) if name in ("fw_a", "gc_a") else None

    @eager
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer at its present precision; counts its products in the ledger."""
        self.check_input(x)
        y = self.plain(x) if self.precision.is_float else self._quantized(x)
        self.shapes = {"A": x.shape, "W": self.weight.shape, "E": y.shape}
        self.report(x, y, self.wants(x))
        return y

    def check_input(self, x: torch.Tensor) -> None:
        """Refuse an empty batch and an input without a sample axis.

        Raises:
            ConfigError: so it is.
        """
        if x.numel() == 0:
            raise ConfigError(f"{self.site}: empty batch (input shape {tuple(x.shape)}); drop empty batches")
        if x.dim() < self.axes:
            raise ConfigError(f"{self.site}: input of shape {tuple(x.shape)} has no sample axis; unsqueeze(0) adds one")
        scope = self.state.scope
        if scope is None and self.gated and recomputing():
            raise ConfigError(
                f"{self.site}: activation checkpointing inside of a gated block would run it again at another "
                "precision: checkpoint whole blocks, from outside, with use_reentrant=False"
            )
        if scope is not None and len(x) != len(scope.input) and not self.precision.is_constant:
            raise ConfigError(
                f"{self.site}: {len(x)} rows of {len(scope.input)} samples, so that a width per sample has no place; "
                "use forward=all"
            )

    def report(self, x: torch.Tensor, y: torch.Tensor, wants: tuple[bool, bool]) -> None:
        """Count one forward pass, and the backward products that will follow, from input ``x`` to output ``y``."""
        scope, ledger = self.state.scope, self.state.ledger
        train = self.training and torch.is_grad_enabled()
        want = (train and wants[0], train and wants[1])
        if scope is not None:
            scope.ran(self, self.sample_macs(y) * y.shape[0], *want)
        elif not ledger.enabled:
            return
        elif not recomputing():
            count_layer(self, x, self.sample_macs(y), *want)
            self._without_graph = self.state.step if self.training and not train else None
        else:
            with ledger.during("recompute"):
                count_layer(self, x, self.sample_macs(y), False, False)
            if self._without_graph == self.state.step:  # the first pass left backward to this one
                count_layer(self, x, self.sample_macs(y), *want, fw=False)

    def forward_product(self, a: Activation, w: Operand, bias: torch.Tensor | None) -> torch.Tensor:
        """FW of a quantized activation and the weight."""
        if a.geometry is not None and isinstance(a.codes, Quantized):
            _, codes = self.weight_operand(w, "fw_w", True)
            y = self.integer_product(a.codes, codes, bias, a.geometry) if isinstance(codes, Quantized) else None
            if y is not None:
                return y
        values = a.codes.values() if a.values is None and a.codes is not None else a.values
        assert values is not None
        return self.product(values, self.quantized_weight(w), bias)

    @in_wide_types
    def _quantized(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 4 and not x.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        scope = self.state.scope
        # The number of the call tells apart the uses of a layer that runs more than once in a pass.
        key = None if scope is None else ("product", self.site, scope.forward_key, len(scope.sites))
        known = None if scope is None else scope.memo.get(key)
        if known is not None and version_of(known[0]) == known[2]:  # else the block has changed it in place
            # Another candidate with the same forward precision has computed this product: only backward differs.
            return run_products(x, self, None, known[1], known[0])
        fw = self._activation(x, self.precision.fw_a, "fw_a")
        kept = fw
        if self.training and not self.precision.gc_a.same_as(self.precision.fw_a):
            kept = self._activation(x, self.precision.gc_a, "gc_a")
        y = run_products(x, self, fw, kept)
        if scope is not None and self.training:
            kept = replace(kept, values=None) if kept.codes is not None else kept
            scope.memo[key] = (y.detach(), kept, version_of(y))
        return y

    def _activation(self, x: torch.Tensor, op: Operand, name: str) -> Activation:
        told = known_range.of(x)
        x = x.detach()
        if op.is_float:
            return Activation(x, None)
        # In evaluation nan may pass through, which codes cannot show: only measured ranges are known to be finite.
        geometry = self.integer_paths(x)[0] if name == "fw_a" and self.training else None
        tensor = "A" if name in ("fw_a", "gc_a") else "B"
        kept = self.training and (name not in ("fw_a", "fw_w") or geometry is not None or self.keeps_forward_operand)
        noise, code_bits = self._noise(op, tensor, x), op.widest if kept else 0
        running = None if op.running is None else self.running_range(name)
        if not self.training and running is not None and bool(running[2] > 0):
            known: Limits | None = (running[0].to(x.dtype), running[1].to(x.dtype))
        else:
            known = self._shared_limits(x, op)
        only_codes = geometry is not None and self.observer is None
        values, codes, limits = self._to_grid(x, op, name, noise, code_bits, "input", known, only_codes, told)
        forward = self.training and name in ("fw_a", "fw_w")
        if running is not None and op.running is not None and forward and not recomputing():
            update_range(running, limits, op.running)
        if values is not None:
            self._observe(name, op, x, values)
        return Activation(values, codes, geometry)

    def _to_grid(
        self, x: torch.Tensor, op: Operand, name: str, noise: NoiseKey | None, code_bits: int, what: str,
        known: Limits | None = None, only_codes: bool = False, told: tuple[float, float] | None = None,
    ) -> tuple[torch.Tensor | None, Kept | None, Limits | tuple[float, float]]:  # fmt: skip
        """Quantize ``x`` at the range that is ``known``, or else measured; return values, codes and the range.

        ``name`` is that of the operand, ``what`` says what a message is about. With ``only_codes`` the values
        may be left out. What is ``told`` is what measuring would find.
        """
        state = self.state
        if op.format.bits is not None:
            return self._to_scaled(x, op, name, noise, code_bits > 0, what, known)
        if known is None and state.reduce_limits is not None and what != "weight" and op.format.spans_samples:
            known = self._whole(op.format.limits(x, state.kernels), op, x)
        if known is None or (known[0].numel() == 1 and known[0].device.type == "cpu"):
            whole = isinstance(op.format.granularity, PerTensor)
            given = (known[0].item(), known[1].item()) if known is not None else told if whole else None
            done = quantize_measured(x, op.format, op.bits, noise, code_bits, state.kernels, given, only_codes)
            if done is not None:
                if isinstance(done.bad, torch.Tensor):
                    state.note(self.site, what, done.bad)  # read later: no synchronisation in a step
                elif done.bad:
                    self._refuse(what)
                return done.values, done.codes, done.limits
        limits = known if known is not None else op.format.limits(x, state.kernels)
        self._check(limits, what)
        grid = op.format.compact_grid(limits, op.bits, x)  # per tile: a grid of the tensor's size is not kept
        values, codes = quantize(x, grid, noise, code_bits, state.kernels)
        return values, codes, limits

    def _to_scaled(
        self, x: torch.Tensor, op: Operand, name: str, noise: NoiseKey | None, keep: bool, what: str,
        known: Limits | None,
    ) -> tuple[torch.Tensor, Kept | None, Limits]:  # fmt: skip
        """As :meth:`_to_grid`, for formats that are no uniform grid."""
        reduce = None if what == "weight" else self.state.reduce_amax
        place = Place("W" if what == "weight" else "A", self.matrix_rows(x), reduce, keep, self.state.kernels)
        history = name.replace(".", "_")
        known = delayed_limits(self, history, op) or known
        done = op.format.quantize(x, op.bits, noise, known, place)
        self._check(done.limits, what)
        if self.training:
            remember(self, history, op, done.limits)
        return done.values, done.codes, done.limits

    def _shared_limits(self, x: torch.Tensor, op: Operand) -> Limits | None:
        """Range of the block's input, measured once for all candidates and all layers that read it; else None."""
        scope = self.state.scope
        if scope is None or x.data_ptr() != scope.input.data_ptr():
            return None
        key = ("limits", op.format, x.shape, x.stride(), version_of(x))
        if key not in scope.memo:
            scope.memo[key] = self._whole(op.format.limits(x, self.state.kernels), op, x)
            self._check(scope.memo[key], "input")
        return scope.memo[key]  # type: ignore[no-any-return]

    def _whole(self, limits: Limits, op: Operand, x: torch.Tensor) -> Limits:
        """Limits over all processes, where the batch is spread over several and one grid holds for all samples."""
        reduce = self.state.reduce_limits
        if reduce is None or not op.format.spans_samples:
            return limits
        return reduce(*limits, x.shape[0] if op.format.statistic == "mean" else None)

    def quantized_weight(self, op: Operand, name: str = "fw_w") -> torch.Tensor:
        """Quantized weight (values); while training, computed once per version of the weight, step and operand.

        Backward drops what is kept: writes through ``weight.data`` leave no trace in the weight's version. Evaluation
        keeps nothing for the same reason.
        """
        return self.as_kernel(widened(self.weight.detach())) if op.is_float else self.weight_operand(op, name, False)[0]

    def weight_operand(self, op: Operand, name: str, integer: bool) -> tuple[torch.Tensor, Kept | None]:
        """Values of the quantized weight and, where ``integer`` products want them, its codes."""
        bits = op.bits if isinstance(op.bits, int) else (id(op.bits), version_of(op.bits))
        key = (op.format, bits)
        step = self.state.step if op.format.rounding == "stochastic" else None
        # What was computed outside of a recording is a constant in it, and would stay so in all its replays.
        number = None if self.state.table is None else self.state.table.recording
        weight = self.weight
        version = (version_of(weight), weight.data_ptr(), step, number)
        if self._weights_of != version:
            self._weights, self._weights_of = {}, version
        kept = self._weights.get(key) if self.training else None
        slim = self.keeps_codes and self.state.scope is None
        if kept is None or ((integer or slim) and kept[1] is None):
            w = op.format.forward_transform(self.as_kernel(widened(weight.detach())))
            code_bits = op.widest if integer or slim else 0
            values, codes, _ = self._to_grid(w, op, name, self._noise(op, "W", w), code_bits, "weight")
            assert values is not None
            self._observe(name, op, w, values)
            if self.training:  # holds the map, so that its id stays taken
                self._weights[key] = (None if slim and codes is not None else values, codes, op.bits)
            return values, codes
        values, codes, _ = kept
        if values is None:
            assert codes is not None
            values = codes.values()
        return values, codes

    def forget_weights(self) -> None:
        """Drop the quantized weights kept for reuse."""
        self._weights, self._weights_of = {}, None

    def quantized_error(self, g: torch.Tensor, op: Operand, name: str) -> torch.Tensor:
        """Quantized output gradient (values)."""
        values, _ = self.error_operand(g, op, name)
        assert values is not None
        return values

    def error_operand(
        self, g: torch.Tensor, op: Operand, name: str, integer: bool = False, values: bool = True
    ) -> tuple[torch.Tensor | None, Kept | None]:
        """Quantized output gradient: values, and codes for ``integer`` products; either may come unasked.

        With one width per sample only those of at most 8 bits have codes.
        """
        if op.is_float:
            return g, None
        only_codes = integer and not values and self.observer is None
        code_bits = min(op.widest, 8) if integer else 0
        e, codes, _ = self._to_grid(
            g, op, name, self._noise(op, name, g), code_bits, "output gradient", None, only_codes, known_range.of(g)
        )
        if e is not None:
            self._observe(name, op, g, e)
        return e, codes

    def _noise(self, op: Operand, tensor: str, x: torch.Tensor) -> NoiseKey | None:
        if op.format.rounding == "nearest":
            return None
        s = self.state
        suffix = "" if s.scope is None else f"#{s.scope.index}"
        base = 0 if tensor == "W" else s.sample_offset * (x.numel() // x.shape[0])
        return s.noise(f"{self.site}.{tensor}{suffix}", base)

    def _check(self, limits: Limits, what: str) -> None:
        low, high = limits
        if low.device.type != "cpu":
            self.state.watch(self.site, what, low, high)  # read later: no synchronisation in a step
        elif not (all_finite(low) and all_finite(high)):
            self._refuse(what)

    def _refuse(self, what: str) -> NoReturn:
        message = f"{self.site}: inf or nan in its {what} at step {self.state.step}"
        raise NonFiniteError(message, self.site, self.state.step)

    def _observe(self, name: str, op: Operand, x: torch.Tensor, values: torch.Tensor) -> None:
        if self.observer is not None:
            self.observer(self, name, op, x, values)

    def entries(self, precision: Precision, macs: int, eb: bool, gc: bool) -> list[Entry]:
        """Ledger entries per sample at constant widths."""
        return entries_for(self.site, precision, macs, eb, gc, self.shapes)
