"""dynasty: block-wise dynamic precision (DYNASTY, ASP-DAC 2023, arXiv 2210.17047). A reconstruction (ours).

Readable of the source is the abstract: block-wise dynamic precision *training*; fast online analytics give the data's
sensitivity; an adaptive bit-width map generator keeps convergence stable; CIFAR-100 and ImageNet, against 8-bit
training up to 5.1x faster and 4.7x less energy without loss of accuracy. There is no public code. Everything below is
our reconstruction: blocks, widths, formats, sensitivity, generator, feedback and all constants. None of it is a
statement about what the authors did.

Formats (reconstruction, ours). Every operand of every product is cut into 16x16 tiles of its matrix view (activations
and errors: positions x channels; weights: output channels and kernel positions x input channels). Each tile has its own
affine range, measured when it is quantized, in evaluation too, and its own width from 2, 4, 8 bits (settable; 0 skips a
tile of E. Not of A or W: a channel without input or weights is constant, BatchNorm divides by its standard deviation,
and training dies of the gradients; tried, at a budget of 2.5). FW: A and W
nearest; EB: E stochastic, W nearest; GC: A nearest, E stochastic. Each tensor is quantized once and used in both of its
products, first and last layer included. Products of two activations (attention) have tiles, too, but no maps: their
size changes with the length of the text, so all their tiles keep the width of the start and are no part of the budget.
BatchNorm, master weights and optimizer stay in floating point.

Maps (reconstruction, ours). The width of an A or E tile is kept by its place in the sample (rows of tiles come back
after a few samples, see `tile_period`) and its channels, not by the sample: a map fits any batch, the last partial one
and evaluation included, and lives long enough for averages and hysteresis to mean something. Another image size in
evaluation reuses the map row by row. Where a tile spans samples (fewer than 16 positions each), their common range
makes an output depend, within a rounding step, on the other samples of its batch.

Sensitivity (reconstruction, ours). From tensors the backward pass has at hand, every `observe`-th step:
A and W: N * (gradient of the batch's mean loss)^2 * range^2 / 12 per tile (Fisher times noise variance at 0 bits; N^2
for A, whose gradient is one sample's part of the mean); E: range^2 / 12 over the mean square of the layer's error
(inverse signal-to-noise). Exponential averages. Where no input gradient is computed (first layer), A is kept widest.

Map generator (reconstruction, ours): reverse water-filling over the tiles of all layers, weighted with the MACs they
take part in, W and A together and E apart (their sensitivities have different units), both at the same mean width: the
largest at which the products cost no more than those of a uniform map of `budget` bits (by mean widths per layer).
Rounded to the allowed widths, with hysteresis; every `refresh` steps. Until the first: the allowed width next to it.

Feedback (reconstruction, ours): the mean loss of the last `refresh` steps against that of the ones before. It fell by
the fraction `fall`: budget - `tighten` bits; else budget + `relax` bits; kept in `budget_low`..`budget_high`.

Controls (ours): whether it matters *which tile* gets the bits. `map=shuffled` gives the widths of each operand to its
tiles in another order; `map=random` gives every tile the sensitivity of another one of any layer. Both orders are drawn
once a run, so that the maps are as steady, and cost as much, as the adaptive ones. `map=uniform` has one width.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from fractrain.cost.formulas import FLOAT_MAC_BITS
from fractrain.layers.conv_linear import Backward, QuantLayer
from fractrain.layers.convert import convert, quant_layers
from fractrain.layers.matmul import Matmul, QuantMatmul
from fractrain.methods.base import Method, MethodContext, MethodSettings, Variation
from fractrain.methods.bit_maps import Pool, Stored, average, fold_rows, map_overhead, tile_mean_squares
from fractrain.numerics.backend import Quantized
from fractrain.numerics.formats import Affine
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.quantize import tile_limits
from fractrain.numerics.tiles import PerTile, tile_counts, tile_period, tile_sizes
from fractrain.util.seeds import derive_seed

BISECTIONS = 9
POOLS = (("A", "W"), ("E",))  # roles whose sensitivities have the same unit share a budget
Maps = dict[str, dict[str, torch.Tensor]]


class DynastySettings(MethodSettings):
    """Settings of dynasty; all values are ours."""

    widths: tuple[int, ...] = Field((2, 4, 8), description="widths a tile may have, ascending; 0 = skipped (E only)")
    tile: tuple[int, int] = Field((16, 16), description="rows and columns of a tile in the matrix view")
    map: Literal["adaptive", "shuffled", "random", "uniform"] = Field(
        "adaptive", description="uniform: every tile at `budget` bits; shuffled, random: controls, see the docstring"
    )
    budget: float = Field(4.0, ge=0, le=16, description="at the start: width of the uniform map that costs as much")
    budget_low: float = Field(3.0, ge=0, description="least budget, bits")
    budget_high: float = Field(8.0, le=16, description="largest budget, bits")
    refresh: int = Field(16, ge=1, description="steps between two maps, and between two looks at the loss")
    observe: int = Field(8, ge=1, description="steps between two measurements of sensitivity")
    decay: float = Field(0.7, ge=0, lt=1, description="fraction of the old average kept at a measurement")
    hysteresis: float = Field(0.25, ge=0, description="bits beyond a rounding point before a width changes")
    fall: float = Field(0.02, description="fraction by which the loss should fall from refresh to refresh")
    tighten: float = Field(0.1, ge=0, description="bits off the budget when it does")
    relax: float = Field(0.2, ge=0, description="bits onto the budget when it does not")
    keep_first: bool = Field(False, description="leave the first layer in floating point")
    keep_last: bool = Field(False, description="leave the last layer in floating point")

    @model_validator(mode="after")
    def _consistent(self) -> DynastySettings:
        if list(self.widths) != sorted(set(self.widths)) or not self.widths:
            raise ValueError(f"widths must ascend, got {self.widths}")
        if any(w != 0 and not 2 <= w <= 16 for w in self.widths) or self.widths[-1] < 2:
            raise ValueError(f"widths must be 0 (skip) or 2..16 bits, got {self.widths}")
        if min(self.tile) < 1:
            raise ValueError(f"a tile must be at least 1x1, got {self.tile}")
        if self.map == "uniform" and (self.budget != int(self.budget) or self.budget < 2):
            raise ValueError(f"map=uniform needs a whole budget of 2..16 bits, got {self.budget}")
        if self.map != "uniform" and not self.budget_low <= self.budget <= self.budget_high:
            raise ValueError(f"budget must be in budget_low..budget_high = {self.budget_low}..{self.budget_high}")
        return self


def steer(budget: float, before: float | None, now: float, s: DynastySettings) -> float:
    """Return the budget after a look at the loss: tightened if it fell as it should, relaxed if it did not.

    Args:
        budget: mean width so far.
        before, now: mean loss of the period before the last one (None: there was none) and of the last one.
        s: settings.
    """
    if before is None:
        return budget
    fell = math.isfinite(now) and now <= before * (1 - s.fall)
    return min(max(budget - s.tighten if fell else budget + s.relax, s.budget_low), s.budget_high)


class Dynasty(Method):
    """Width per 16x16 tile of A, W, E from 2, 4, 8 by sensitivity, budget steered by the loss (reconstruction, ours).

    A, W: affine per tile, nearest; E: affine per tile, stochastic; all three products of all layers. BatchNorm in
    floating point. Only the idea is the paper's; every formula and constant is a reconstruction (ours).
    """

    name = "dynasty"
    source = (
        "reconstruction (ours) from the abstract of Liu et al., DYNASTY, ASP-DAC 2023 (arXiv 2210.17047, "
        "doi 10.1145/3566097.3567876); the text beyond it was not readable and there is no public code"
    )
    Settings = DynastySettings
    contract_settings = {"refresh": 1, "observe": 1}
    contract_variations = {"refresh": 2, "budget_low": Variation(4.0, given={"fall": -9.0, "tighten": 0.5})}

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize all layers at the allowed width nearest to the budget; maps come with the first refresh."""
        s: DynastySettings = self.settings
        self._budget = float(s.budget)
        fits = min((w for w in s.widths if w), key=lambda w: (abs(w - s.budget), -w))
        self._start = int(s.budget) if s.map == "uniform" else fits
        self._tile = PerTile(*s.tile, repeat=True)
        types = (nn.Conv2d, nn.Linear, Matmul)  # the others take no widths per tile
        convert(
            model, self._precision({}), self.state, keep_first=s.keep_first, keep_last=s.keep_last, types=types
        )  # fmt: skip
        quantized = (m for m in quant_layers(model) if not m.precision.is_float)
        self._layers = {m.site: m for m in quantized if not isinstance(m, QuantMatmul)}
        self._maps: Maps = {site: {} for site in self._layers}
        self._sensitivity: Maps = {site: {} for site in self._layers}  # per MAC, averaged; shape of the map
        self._macs: dict[str, int] = {}
        self._values: dict[str, dict[str, float]] = {}  # of A, E and W, per sample, W's in all
        self._restart_loss(None)
        return model

    def _restart_loss(self, before: float | None) -> None:
        self._before, self._loss_sum, self._loss_steps = before, torch.zeros((), dtype=torch.float64), 0

    def _precision(self, maps: dict[str, torch.Tensor]) -> Precision:
        nearest = Affine(self._tile)
        formats = {"A": nearest, "W": nearest, "E": Affine(self._tile, rounding="stochastic")}
        a, w, e = (Operand(maps.get(role, self._start), fmt) for role, fmt in formats.items())
        return Precision.of(a, w, e)

    # -- analytics ---------------------------------------------------------------------------------------------------

    def on_step_start(self, step: int) -> None:
        """Measure sensitivities in every ``observe``-th step."""
        super().on_step_start(step)
        watch = self.settings.map != "uniform" and step % self.settings.observe == 0
        for layer in self._layers.values():
            layer.backward_observer = self._observe if watch else None

    @torch.no_grad()
    def _observe(self, layer: QuantLayer, seen: Backward) -> None:
        """Take one layer's gradients into the averages; called inside the backward pass."""
        tile, n = self._tile, seen.error.shape[0]
        macs = self._macs[layer.site] = layer.sample_macs(seen.error)
        sizes = {"A": layer.shapes["A"].numel() / n, "E": seen.error.numel() / n, "W": float(layer.weight.numel())}
        self._values[layer.site] = sizes
        e2 = self._range_squares(seen.error) / 12.0
        signal = seen.error.square().mean(dtype=torch.float64).clamp(min=1e-300)
        self._average(layer, "E", fold_rows(e2, tile_period(seen.error.shape, tile)) / (signal * macs))
        if seen.dw is not None:
            w = layer.weight.detach()
            fisher = n * tile_mean_squares(seen.dw, tile)
            self._average(layer, "W", fisher * self._range_squares(w) / 12.0 * (w.numel() / macs))
        shape = layer.shapes["A"]
        period = tile_period(shape, tile)
        if seen.da is None or seen.activation is None:
            unknown = seen.error.new_full((period, tile_counts(shape, tile)[1]), math.inf, dtype=torch.float64)
            self._average(layer, "A", unknown)
            return
        assert isinstance(seen.activation, Quantized)
        grid = seen.activation.grid
        assert not callable(grid)
        span = (grid.scale * (grid.qmax - grid.qmin).clamp(min=1.0)).double()
        fisher = n * n * tile_mean_squares(seen.da, tile)
        per_sample = shape.numel() / n
        self._average(layer, "A", fold_rows(fisher * span.square() / 12.0, period) * (per_sample / macs))

    def _range_squares(self, x: torch.Tensor) -> torch.Tensor:
        low, high = tile_limits(x, self._tile, self.state.kernels)
        return (high - low).double().square()

    def _average(self, layer: QuantLayer, role: str, new: torch.Tensor) -> None:
        kept = self._sensitivity[layer.site]
        kept[role] = average(kept.get(role), new, self.settings.decay)

    # -- maps --------------------------------------------------------------------------------------------------------

    def on_step_end(self, step: int, loss: torch.Tensor, extra: torch.Tensor | None = None) -> None:
        """Add up the loss; every ``refresh`` steps steer the budget and make new maps."""
        self._loss_sum = self._loss_sum.to(loss.device) + loss.double()
        self._loss_steps += 1
        if self.settings.map != "uniform" and self._loss_steps >= self.settings.refresh:
            mean = float(self._loss_sum) / self._loss_steps
            self._budget = steer(self._budget, self._before, mean, self.settings)
            self._restart_loss(mean)
            self._refresh()

    def _refresh(self) -> None:
        """Make the maps whose products cost as near below those of a uniform map at the budget as possible."""
        total, world = self.context.reduce_sum, self.context.world
        for known in self._sensitivity.values() if world > 1 else ():  # all processes choose the same maps
            known.update({role: total(known[role]) / world for role in sorted(known)})
        s: DynastySettings = self.settings
        pools = [self._pool(roles) for roles in POOLS]
        if not all(pool.relative for pool in pools):
            return

        low, high = float(s.widths[0]), float(s.widths[-1])
        best = [p.allocate(low, s.hysteresis) for p in pools]
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            found = [p.allocate(middle, s.hysteresis) for p in pools]
            means = {k: v for p, w in zip(pools, found, strict=True) for k, v in p.means(w).items()}
            low, high, best = (middle, high, found) if self._cost_of(means) <= self._budget**2 else (low, middle, best)
        for pool, widths in zip(pools, best, strict=True):
            for (site, role), part in pool.maps(widths).items():
                self._set(site, role, part)

    def _pool(self, roles: tuple[str, ...]) -> Pool:
        """Everything known of the operands that share a unit of sensitivity; 0 bits for errors only."""
        known = {(t, r): v[r].cpu() for t, v in self._sensitivity.items() for r in roles if r in v}
        known = self._of_other_tiles(known, roles) if self.settings.map == "random" else known
        cost = {(t, r): self._cost(t, r, v.shape) for (t, r), v in known.items()}
        old = {(t, r): self._maps[t].get(r, torch.full(v.shape, self._start)).cpu() for (t, r), v in known.items()}
        return Pool(tuple(w for w in self.settings.widths if w or roles == ("E",)), known, cost, old)

    def _set(self, site: str, role: str, new: torch.Tensor) -> None:
        """Give an operand its map; one that did not change stays the same tensor, so that what it keeps stays valid."""
        maps, layer = self._maps[site], self._layers[site]
        if role not in maps or not torch.equal(maps[role].cpu(), new):
            maps[role] = new.to(layer.weight.device)
            layer.precision = self._precision(self._placed(site))

    def _placed(self, site: str) -> dict[str, torch.Tensor]:
        """The maps of a layer as they are used: of the control ``shuffled``, in another order."""
        maps = self._maps[site]
        if self.settings.map != "shuffled":
            return maps
        orders = {role: self._order(m.numel(), site, role).to(m.device) for role, m in maps.items()}
        return {role: m.reshape(-1)[orders[role]].view(m.shape) for role, m in maps.items()}

    def _of_other_tiles(self, known: dict[tuple[str, str], torch.Tensor], roles: tuple[str, ...]) -> Any:
        """Sensitivities in another order over all tiles; those that are not known (infinite) stay where they are."""
        flat = torch.cat([v.reshape(-1) for v in known.values()] or [torch.zeros(0)])
        there = flat.isfinite().nonzero()[:, 0]
        flat[there] = flat[there[self._order(len(there), *roles)]]
        parts = torch.split(flat, [v.numel() for v in known.values()])
        return {key: part.view(v.shape) for (key, v), part in zip(known.items(), parts, strict=True)}

    def _order(self, tiles: int, *names: str) -> torch.Tensor:
        """The order of a control: drawn once a run, so that its maps are as steady as the adaptive ones."""
        generator = torch.Generator().manual_seed(derive_seed(self.context.seed, "dynasty", self.settings.map, *names))
        return torch.randperm(tiles, generator=generator)

    def _cost_of(self, means: dict[tuple[str, str], float]) -> float:
        """Mean product of the widths of two operands over the MACs of all layers, by mean widths per operand."""
        cost = 0.0
        for site, macs in self._macs.items():
            a, w, e = (means.get((site, role), float(self._start)) for role in "AWE")
            cost += macs * (a * w + e * w + a * e) / 3
        return cost / max(1, sum(self._macs.values()))

    def projected_cost(self) -> float:
        """What a MAC costs by the present maps, in bit operations: by mean widths per operand, not tile by tile."""
        return self._cost_of({(t, r): self._mean_width(t, r) for t in self._macs for r in "AWE"})

    def _mean_width(self, site: str, role: str) -> float:
        m = self._maps[site].get(role)
        if m is None:
            return float(self._start)
        cost = self._cost(site, role, m.shape)
        return float((m.cpu() * cost).sum() / cost.sum())

    def _cost(self, site: str, role: str, shape: torch.Size) -> torch.Tensor:
        """MACs per sample that each tile of a map takes part in, in one product."""
        weight, tile = self._layers[site].weight, self._tile
        if role == "W":
            sizes = tile_sizes(weight.shape, tile)
        else:  # the rows of a map stand for equally many positions each
            channels = weight.shape[0] if role == "E" else weight.shape[1] * self._layers[site].groups
            sizes = tile_sizes(torch.Size((shape[0] * tile.rows, channels)), tile)
        return sizes / sizes.sum() * self._macs[site]

    # -- what is seen and kept ---------------------------------------------------------------------------------------

    def mean_widths(self) -> dict[str, float]:
        """Mean width of A, W and E over the MACs they take part in, by the present maps."""
        total = sum(self._macs.values())
        if not total:
            return dict.fromkeys("AWE", float(self._start))
        return {r: sum(n * self._mean_width(t, r) for t, n in self._macs.items()) / total for r in "AWE"}

    def metrics(self) -> dict[str, float]:
        """Budget, mean widths by MACs, and what analysis and maps take (:func:`map_overhead`) once there are any."""
        means = {f"bits_{role.lower()}": v for role, v in self.mean_widths().items()}
        return {"budget": self._budget} | means | self._overhead()

    def _overhead(self) -> dict[str, float]:
        n = self.context.batch_size
        stored = []
        for site, values in self._values.items():
            for role, m in self._maps[site].items():
                width = self._mean_width(site, role)
                stored.append(Stored(values[role] * (1 if role == "W" else n), m.numel(), width))
        if not stored:
            return {}
        products = 3 * n * sum(self._macs.values()) * self.projected_cost() / FLOAT_MAC_BITS
        s: DynastySettings = self.settings
        return map_overhead(stored, products, len(s.widths), s.tile[0] * s.tile[1], s.observe)

    def state_dict(self) -> dict[str, Any]:
        """Maps, averages, budget and the loss so far."""
        return {
            "budget": self._budget, "before": self._before, "loss_sum": self._loss_sum.cpu(),
            "loss_steps": self._loss_steps, "macs": dict(self._macs),
            "values": {site: dict(values) for site, values in self._values.items()},
            "maps": {site: {r: m.cpu() for r, m in maps.items()} for site, maps in self._maps.items()},
            "sensitivity": {site: {r: v.cpu() for r, v in known.items()} for site, known in self._sensitivity.items()},
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, layers' precision included."""
        device = {site: layer.weight.device for site, layer in self._layers.items()}
        self._budget, self._before, self._loss_steps = state["budget"], state["before"], state["loss_steps"]
        self._loss_sum, self._macs = state["loss_sum"].clone(), dict(state["macs"])
        self._values = {site: dict(values) for site, values in state.get("values", {}).items()}
        self._maps = {t: {r: m.to(device[t]) for r, m in maps.items()} for t, maps in state["maps"].items()}
        self._sensitivity = {t: {r: v.to(device[t]) for r, v in k.items()} for t, k in state["sensitivity"].items()}
        for site, layer in self._layers.items():
            layer.precision = self._precision(self._placed(site))
