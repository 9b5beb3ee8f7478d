"""The plain path of a quantized layer: its operands are quantized, and multiplied in three products.

:meth:`QuantLayer.forward` quantizes activation and weight and makes FW; :class:`_Products`, the autograd function
behind it, quantizes the error in backward and makes EB and GC. Where codes can be multiplied as integers the layer's
kind does that (``integer_...``); all else multiplies their values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from fractrain.cost.counting import count_layer, entries_for
from fractrain.cost.ledger import Entry
from fractrain.experimental.int8_gemm import GemmPlan, Shape
from fractrain.kernels.cpu.int8_backward import Plan
from fractrain.kernels.geometry import Geometry
from fractrain.layers import tensor_hints as known_range
from fractrain.layers.delayed import adopt_histories, delayed_limits, prepare_histories, remember
from fractrain.layers.eager import eager
from fractrain.layers.number_types import WIDE, without_autocast
from fractrain.layers.recomputation import recomputing
from fractrain.layers.state import CandidateScope, QuantState
from fractrain.layers.tensor_hints import version_of
from fractrain.numerics.backend import Kept, Quantized, backend_for
from fractrain.numerics.formats import Limits, Place
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.quantize import quantize
from fractrain.numerics.running_range import all_finite, update_range
from fractrain.numerics.stochastic_rounding import NoiseKey, noise_key
from fractrain.util.errors import ConfigError, NonFiniteError


@dataclass
class Activation:
    """An activation operand ready for its product.

    Attributes:
        values: for FW now.
        codes: for backward.
        geometry: of the product on integer codes, where FW is to run on them.
    """

    values: torch.Tensor | None
    codes: Kept | None
    geometry: Geometry | Shape | None = None


@dataclass(frozen=True)
class Backward:
    """What a layer has at hand in its backward pass, for :attr:`QuantLayer.backward_observer`.

    Attributes:
        error: output gradient before it is quantized.
        activation: the quantized activation that GC multiplies; None in floating point.
        da, dw: gradients of input and weight, None where not wanted.
    """

    error: torch.Tensor
    activation: Kept | None
    da: torch.Tensor | None
    dw: torch.Tensor | None


class QuantLayer(nn.Module):
    """A layer of three products: precision, ranges, weight cache, accounting; each kind says how it multiplies.

    Products of quantized operands are computed in float32, or in float64 where the input is: in a model or under
    autocast in a narrower type the operands are widened first. The output has the input's type.

    Attributes:
        precision: assign a new one to change it, also while training.
        site: name of the layer in its model (set by :func:`fractrain.layers.convert.convert`).
        running_low, running_high: range of the input used in evaluation, 0-dim buffers.
        observer: called as ``observer(layer, operand name, Operand, original, quantized values)`` when set; for
            probes and tests.
        backward_observer: called as ``backward_observer(layer, Backward)`` at the end of each backward pass when set;
            for methods that steer by gradients. It must not change what it is shown.
    """

    weight: Any  # a parameter, where there is one
    bias: Any
    keeps_codes = False  # of its weight from forward to backward, not the values: where these are large
    _paths: tuple[Any, tuple[Geometry | Shape | None, Plan | GemmPlan | None]] | None = None
    groups = 1
    axes = 2  # least axes of the input
    gated = False  # whether a gated block sets the precision anew for each of its passes
    paired = False  # whether the operand in the weight's place has a sample axis, too
    running_low: torch.Tensor
    running_high: torch.Tensor
    running_steps: torch.Tensor

    def init_quant(
        self, precision: Precision, state: QuantState, site: str, device: torch.device | None = None
    ) -> None:
        """Attach precision and shared state (called once, by the constructors); ``device``: None: the weight's."""
        self.precision = precision
        self.state = state
        self.site = site
        self.observer: Any = None
        self.backward_observer: Any = None
        self.shapes: dict[str, torch.Size] = {}  # of A, W and E in the last forward pass
        self.work_key: tuple[Any, str] = (None, "")  # ledger work item at the present precision
        self.tile_work: dict[str, list[Any]] = {}  # the same by product, where widths vary from tile to tile
        # Quantized weights by format and width, with what holds the map of widths; by None the weight's version.
        self._weights: dict[Any, Any] = {}
        self._without_graph: int | None = None  # step of the last training pass, if it was under no_grad
        weight = getattr(self, "weight", None)
        device = device if weight is None else weight.device
        for name in ("running_low", "running_high"):
            self.register_buffer(name, torch.zeros((), device=device))
        self.register_buffer("running_steps", torch.zeros((), dtype=torch.int64, device=device))
        prepare_histories(self, self.effective(precision) if self.paired else precision)

    @property
    def device(self) -> torch.device:
        """Where the layer is."""
        return self.running_low.device

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
        """Refuse an empty batch and an input without a sample axis, which floating point does not mind.

        Raises:
            ConfigError: so it is.
        """
        odd = x.numel() == 0 or x.dim() < self.axes
        if odd and self.effective(self.precision).is_float:
            return
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

    def report(self, x: torch.Tensor, y: torch.Tensor, wants: tuple[bool, bool], elsewhere: bool = False) -> None:
        """Count one forward pass, and the backward products that will follow, from input ``x`` to output ``y``.

        ``elsewhere`` says that others multiply.
        """
        if x.numel() == 0:
            return
        if x.dim() < self.axes:  # one sample
            x, y = x[None], y[None]
        scope, ledger = self.state.scope, self.state.ledger
        if self.state.seen is not None:
            self.state.seen(self, self.sample_macs(y) * y.shape[0], elsewhere)
        training = self.training or self.state.trains
        train = training and torch.is_grad_enabled()
        want = (train and wants[0], train and wants[1])
        if scope is not None:
            scope.ran(self, self.sample_macs(y) * y.shape[0], *want)
        elif not ledger.enabled:
            return
        elif not recomputing():
            count_layer(self, x, self.sample_macs(y), *want)
            self._without_graph = self.state.step if training and not train else None
        else:
            with ledger.during("recompute"):
                count_layer(self, x, self.sample_macs(y), False, False)
            if self._without_graph == self.state.step:  # the first pass left backward to this one
                count_layer(self, x, self.sample_macs(y), *want, fw=False)

    def forward_product(self, a: Activation, w: Operand, bias: torch.Tensor | None) -> torch.Tensor:
        """FW of a quantized activation and the weight."""
        if a.geometry is not None and isinstance(a.codes, Quantized):
            restored, codes = self.weight_operand(w, "fw_w", True)
            if isinstance(codes, Quantized):
                y = self.integer_product(a.codes, codes, restored, bias, a.geometry)
                if y is not None:
                    return y
        values = a.codes.values() if a.values is None and a.codes is not None else a.values
        assert values is not None
        return self.product(values, self.quantized_weight(w), bias)

    @without_autocast
    def _quantized(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype not in WIDE:
            if not x.is_floating_point():
                raise ConfigError(
                    f"{self.site}: input of type {x.dtype}: a quantized layer takes floating point numbers"
                )
            return self._quantized(x.float()).to(x.dtype)
        if x.dim() == 4 and not x.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        scope, paths = self.state.scope, self.integer_paths(x) if self.training else (None, None)
        # The number of the call tells apart the uses of a layer that runs more than once in a pass.
        key = None if scope is None else ("product", self.site, scope.forward_key, len(scope.sites))
        known = None if scope is None else scope.memo.get(key)
        now: Activation | None = None
        done: torch.Tensor | None = None
        if known is not None and version_of(known[0]) == known[2]:  # else the block has changed it in place
            # Another candidate with the same forward precision has computed this product: only backward differs.
            done, kept = known[:2]
        else:
            p = self.precision
            # In evaluation nan may pass through, which codes cannot show: only measured ranges are known to be finite.
            kept = now = self._activation(x, p.fw_a, "fw_a", paths[0])
            if self.training and not p.one_activation:
                kept = self._activation(x, p.gc_a, "gc_a")
        bias = self.bias if self.bias is None or self.bias.dtype in WIDE else self.bias.float()
        plan = paths[1] if kept.codes is not None else None
        y: torch.Tensor = _Products.apply(x, self.as_kernel(self.weight), bias, self, now, kept, done, plan)
        if scope is not None and self.training and done is None:
            kept = replace(kept, values=None) if kept.codes is not None else kept
            scope.memo[key] = (y.detach(), kept, version_of(y))
        return y

    def _activation(
        self, x: torch.Tensor, op: Operand, name: str, geometry: Geometry | Shape | None = None
    ) -> Activation:
        """Quantize an input; with a ``geometry`` FW will run on its codes."""
        told = known_range.of(x)
        x = x.detach()
        if op.is_float:
            return Activation(x, None)
        tensor = "A" if name in ("fw_a", "gc_a") else "B"
        first = name in ("fw_a", "fw_w")
        kept = self.training and (not first or geometry is not None or self.precision.one_activation)
        noise = None if op.format.rounding == "nearest" else self._noise(op, tensor, x)
        code_bits = 0 if not kept else op.bits if isinstance(op.bits, int) else op.widest
        running = None if op.running is None else self.running_range(name)
        if not self.training and running is not None and bool(running[2] > 0):
            known: Limits | None = (running[0].to(x.dtype), running[1].to(x.dtype))
        else:
            known = None if self.state.scope is None else self._shared_limits(x, op, self.state.scope)
        only_codes = geometry is not None and self.observer is None
        values, codes, limits = self._to_grid(x, op, name, noise, code_bits, "input", known, only_codes, told)
        if running is not None and op.running is not None and self.training and first and not recomputing():
            update_range(running, limits, op.running)
        if values is not None and self.observer is not None:
            self.observer(self, name, op, x, values)
        return Activation(values, codes, geometry)

    def _to_grid(
        self, x: torch.Tensor, op: Operand, name: str, noise: NoiseKey | None, code_bits: int, what: str,
        known: Limits | None = None, only_codes: bool = False, told: tuple[float, float] | None = None,
    ) -> tuple[torch.Tensor | None, Kept | None, Limits | tuple[float, float]]:  # fmt: skip
        """Quantize ``x`` at the range that is ``known``, or else measured; return values, codes and the range.

        ``name`` is that of the operand, ``what`` says what a message is about. With ``only_codes`` the values
        may be left out. What is ``told`` is what measuring would find.
        """
        state, form, uniform = self.state, op.format, op.format.uniform
        if uniform is None and form.bits is not None:
            return self._to_scaled(x, op, name, noise, code_bits > 0, what, known)
        if known is None and state.reduce_limits is not None and what != "weight" and form.spans_samples:
            known = self._whole(form.limits(x, state.kernels), op, x)
        if uniform is not None and (known is None or (known[0].numel() == 1 and known[0].device.type == "cpu")):
            given = told if not uniform.per_row else None
            given = given if known is None else (known[0].item(), known[1].item())
            backend = backend_for(x.device, state.kernels)
            done = backend.quantize_measured(x, uniform, op.bits, noise, code_bits, given, only_codes)
            if done is not None:
                if isinstance(done.bad, torch.Tensor):
                    state.note(self.site, what, done.bad)  # read later: no synchronisation in a step
                elif done.bad:
                    self._refuse(what)
                return done.values, done.codes, done.limits
        limits = known if known is not None else form.limits(x, state.kernels)
        self._check(limits, what)
        grid = form.compact_grid(limits, op.bits, x)  # per tile: a grid of the tensor's size is not kept
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

    def _shared_limits(self, x: torch.Tensor, op: Operand, scope: CandidateScope) -> Limits | None:
        """Range of the block's input, measured once for all candidates and all layers that read it; else None."""
        if x.data_ptr() != scope.input.data_ptr():
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
        return self.as_kernel(self.weight.detach()) if op.is_float else self.weight_operand(op, name, False)[0]

    def weight_operand(self, op: Operand, name: str, integer: bool) -> tuple[torch.Tensor, Kept | None]:
        """Values of the quantized weight and, where ``integer`` products want them, its codes."""
        bits = op.bits if isinstance(op.bits, int) else (id(op.bits), version_of(op.bits))
        key = (op.format, bits)
        step = self.state.step if op.format.rounding == "stochastic" else None
        # What was computed outside of a recording is a constant in it, and would stay so in all its replays.
        number = None if self.state.table is None else self.state.table.recording
        weight = self.weight
        own = None if weight.is_inference() else weight._version
        version = (own, weight.data_ptr(), step, number, self.state.passes)
        if self._weights.get(None) != version:
            self._weights.clear()
            self._weights[None] = version
        kept = self._weights.get(key) if self.training else None
        slim = self.keeps_codes and self.state.scope is None
        if kept is None or ((integer or slim) and kept[1] is None):
            w = op.format.forward_transform(self.as_kernel(weight.detach()))
            code_bits = 0 if not (integer or slim) else op.bits if isinstance(op.bits, int) else op.widest
            noise = None if step is None else self._noise(op, "W", w)
            values, codes, _ = self._to_grid(w, op, name, noise, code_bits, "weight")
            assert values is not None
            if self.observer is not None:
                self.observer(self, name, op, w, values)
            if self.training:  # the map, too, so that its id stays taken
                self._weights[key] = (None if slim and codes is not None else values, codes, op.bits)
            return values, codes
        values, codes, _ = kept
        if values is None:
            assert codes is not None
            values = codes.values()
        return values, codes

    def forget_weights(self) -> None:
        """Drop the quantized weights kept for reuse."""
        self._weights.clear()

    def error_operand(
        self, g: torch.Tensor, op: Operand, name: str, integer: bool = False, values: bool = True
    ) -> tuple[torch.Tensor | None, Kept | None]:
        """Quantized output gradient: values, and codes for ``integer`` products; either may come unasked.

        With one width per sample only those of at most 8 bits have codes.
        """
        if op.is_float:
            return g, None
        only_codes = integer and not values and self.observer is None
        code_bits = min(op.bits if isinstance(op.bits, int) else op.widest, 8) if integer else 0
        e, codes, _ = self._to_grid(
            g, op, name, self._noise(op, name, g), code_bits, "output gradient", None, only_codes, known_range.of(g)
        )
        if e is not None and self.observer is not None:
            self.observer(self, name, op, g, e)
        return e, codes

    def _noise(self, op: Operand, tensor: str, x: torch.Tensor) -> NoiseKey | None:
        if op.format.rounding == "nearest":
            return None
        s = self.state
        suffix = "" if s.scope is None else f"#{s.scope.index}"
        base = 0 if tensor == "W" else s.sample_offset * (x.numel() // x.shape[0])
        name = f"{self.site}.{tensor}{suffix}"
        return noise_key(s.seed, s.step, name, base) if s.table is None else s.table.key(name, base)

    def _check(self, limits: Limits, what: str) -> None:
        low, high = limits
        if low.device.type != "cpu":
            self.state.watch(self.site, what, low, high)  # read later: no synchronisation in a step
        elif not (all_finite(low) and all_finite(high)):
            self._refuse(what)

    def _refuse(self, what: str) -> NoReturn:
        message = f"{self.site}: inf or nan in its {what} at step {self.state.step}"
        raise NonFiniteError(message, self.site, self.state.step)

    def entries(self, precision: Precision, macs: int, eb: bool, gc: bool) -> list[Entry]:
        """Ledger entries per sample at constant widths."""
        return entries_for(self.site, precision, macs, eb, gc, self.shapes)

    # -- how it multiplies, to be given by the kinds of layers --------------------------------------------------------

    def as_kernel(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight in the form and the wide type that it is quantized and multiplied in."""
        return weight if weight.dtype in WIDE else weight.float()

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer that this one replaces computes, its hooks apart."""
        raise NotImplementedError

    def product(self, a: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """FW."""
        raise NotImplementedError

    def backward_products(
        self, e: torch.Tensor, a: torch.Tensor | None, w: torch.Tensor, shape: torch.Size, want_a: bool, want_w: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """EB and GC from the same error: (dA or None, dW or None)."""
        raise NotImplementedError

    def operand_shape(self, x: torch.Tensor) -> torch.Size:
        """What :meth:`backward_products` must know of the input's shape."""
        return x.shape

    def bias_gradient(self, e: torch.Tensor) -> torch.Tensor:
        """Gradient of the bias from the error."""
        raise NotImplementedError

    def sample_macs(self, output: torch.Tensor) -> int:
        """Forward MACs per sample (first axis)."""
        raise NotImplementedError

    def integer_geometry(self, x: torch.Tensor) -> Geometry | Shape | None:
        """How FW runs on integer codes, where the layer can do that and it pays; else None."""
        return None

    def integer_backward(self, x: torch.Tensor) -> Plan | GemmPlan | None:
        """Which backward products run on integer codes, where the layer can do that and it pays; else None."""
        return None

    def integer_paths(self, x: torch.Tensor) -> tuple[Geometry | Shape | None, Plan | GemmPlan | None]:
        """What the two above say, asked once for a precision whose widths are constant and a kind of input."""
        now = (self.precision, x.shape, x.dtype, x.device, self.state.kernels)
        if self._paths is None or self._paths[0] != now or not self.precision.is_constant:
            self._paths = (now, (self.integer_geometry(x), self.integer_backward(x) or None))
        return self._paths[1]

    def integer_product(
        self, a: Quantized, w: Quantized, values: torch.Tensor, bias: torch.Tensor | None, geometry: Any
    ) -> torch.Tensor | None:
        """FW on integer codes (``values``: the weight's) as planned; None where the codes are not what it needs."""
        raise NotImplementedError

    def integer_products(
        self, e: Quantized, values: torch.Tensor | None, a: Quantized | None, w: Quantized | None, plan: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor | None] | None:
        """EB and GC (None where not in the plan) on integer codes; None where the codes are not what they need.

        Where some samples of the error have no codes its ``values`` are there for them.
        """
        raise NotImplementedError


class _Products(torch.autograd.Function):
    """FW now; EB and GC in backward, from quantized operands.

    What is kept for backward: the activation as integer codes (values only where GC reads it in floating point), and
    nothing of the error. The weight is quantized again only if it changed in between.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layer: QuantLayer,
        now: Activation | None, kept: Activation, known: torch.Tensor | None, plan: Plan | GemmPlan | None,
    ) -> torch.Tensor:  # fmt: skip
        p = layer.precision
        y = cast(torch.Tensor, known).detach() if now is None else layer.forward_product(now, p.fw_w, bias)
        ctx.layer, ctx.precision, ctx.shape = layer, p, layer.operand_shape(x)
        s = layer.state.scope  # only its index is needed: what it shares must not live as long as the graph
        ctx.scope = None if s is None else replace(s, input=x.new_empty(0), memo={}, sites=[])
        ctx.has_bias = bias is not None
        # EB multiplies by the weight of this forward pass, as quantized now.
        ctx.plan, ctx.weight, ctx.weight_kept = plan, None, None
        if plan is not None and plan.eb:
            w, ctx.weight = layer.weight_operand(p.eb_w, "eb_w", True)
        elif not p.eb_w.is_float and layer.keeps_codes and s is None:
            w, codes = layer.weight_operand(p.eb_w, "eb_w", False)
            if codes is not None:
                w, ctx.weight_kept = codes.codes, codes.emptied()
        else:
            w = layer.quantized_weight(p.eb_w, "eb_w")
        # Autograd keeps the codes: it frees them after backward even where the loss lives on, and hooks see them.
        a = kept.values if kept.codes is None else kept.codes.codes
        ctx.kept = None if kept.codes is None else kept.codes.with_codes(x.new_empty(0))
        ctx.save_for_backward(w, weight, a if ctx.needs_input_grad[1] else None)
        return y

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        layer: QuantLayer = ctx.layer
        p: Precision = ctx.precision
        layer._weights.clear()
        w, master, a = ctx.saved_tensors
        if ctx.weight_kept is not None:
            w = ctx.weight_kept.with_codes(w).values().to(grads[0].dtype)  # codes are restored in float32
        kept: Kept | None = None if ctx.kept is None or a is None else ctx.kept.with_codes(a)
        g = grads[0].contiguous(memory_format=torch.channels_last) if grads[0].dim() == 4 else grads[0]
        eb, gc = ctx.needs_input_grad[:2]
        bias = ctx.needs_input_grad[2] and ctx.has_bias
        operands = (g, w, a if kept is None else kept)
        da = dw = db = None
        outer, layer.state.scope = layer.state.scope, ctx.scope
        try:
            if p.one_error:
                da, dw, db = _products_of_error(ctx, "E", p.gc_e, operands, eb, gc, bias)
            else:
                if gc or bias:
                    _, dw, db = _products_of_error(ctx, "E.gc", p.gc_e, operands, False, gc, bias)
                if eb:
                    da, _, _ = _products_of_error(ctx, "E.eb", p.eb_e, operands, True, False, False)
        finally:
            layer.state.scope = outer
        if dw is not None and not p.fw_w.is_float:
            dw = p.fw_w.format.backward_transform(master.detach(), dw)
        if layer.backward_observer is not None:
            layer.backward_observer(layer, Backward(g, kept, da, dw))
        return da, dw, db, None, None, None, None, None


def _products_of_error(
    ctx: Any, name: str, op: Operand, operands: tuple[Any, Any, Any], eb: bool, gc: bool, bias: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Quantize the error and multiply it: on codes what the forward pass has planned, all else by values.

    Args:
        ctx: has the layer, the plan, and the codes of the weight where the plan needs them.
        name, op: of the error.
        operands: output gradient, weight, and activation (quantized, or None where GC does not run).
        eb, gc, bias: which gradients are wanted: of the input, of the weight, of the bias.

    Returns:
        These gradients; None where not wanted.
    """
    layer: QuantLayer = ctx.layer
    plan: Plan | GemmPlan | None = ctx.plan
    g, w, a = operands
    da = dw = None
    if plan is not None and (plan.eb, plan.gc) != (eb, gc):
        plan = plan.only(eb, gc) or None
    if plan is None:
        e: Any = layer.error_operand(g, op, name)[0]
    else:
        e, codes = layer.error_operand(g, op, name, True, eb > plan.eb or gc > plan.gc or bias)
        if isinstance(codes, Quantized):
            kept = a if isinstance(a, Quantized) else None
            da, dw = layer.integer_products(codes, e, kept, ctx.weight, plan) or (None, None)
    db = layer.bias_gradient(e) if bias else None
    eb, gc = eb and da is None, gc and dw is None
    if eb or gc:
        values = a.values().to(g.dtype) if gc and isinstance(a, Kept) else a
        some_da, some_dw = layer.backward_products(e, values if gc else None, w, ctx.shape, eb, gc)
        da, dw = some_da if eb else da, some_dw if gc else dw
    return da, dw, db
