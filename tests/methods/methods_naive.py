"""A slow, literal re-implementation of the gated network, in float64, that shares no code with the package.

Every candidate's block is run in full, the outputs are mixed by the straight-through mask ``hard - p.detach() + p``,
and torch's own autograd does the rest. Parameters come as a dict with the names of the prepared model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

Noise = Callable[[str, int, torch.Tensor], torch.Tensor]  # (layer, candidate, error) -> u in [0, 1)


def affine(x: torch.Tensor, bits: int, lo: torch.Tensor, hi: torch.Tensor, u: torch.Tensor | None) -> torch.Tensor:
    """2^b points from lo to hi; to the nearest, or up with probability = fraction."""
    top = 2**bits - 1
    step = torch.maximum((hi - lo) / top, torch.tensor(1e-8, dtype=x.dtype))
    v = (x - lo) / step
    q = v.round() if u is None else torch.where(u.to(x.dtype) < v - v.floor(), v.floor() + 1, v.floor())
    return q.clamp(0, top) * step + lo


def per_tensor(x: torch.Tensor, bits: int, u: torch.Tensor | None = None) -> torch.Tensor:
    return affine(x, bits, x.min(), x.max(), u)


def per_filter(w: torch.Tensor, bits: int) -> torch.Tensor:
    flat = w.reshape(len(w), -1)
    shape = (len(w), *([1] * (w.dim() - 1)))
    return affine(w, bits, flat.min(1).values.view(shape), flat.max(1).values.view(shape), None)


def straight(x: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """Quantized value, gradient of the identity."""
    return x + (quantized - x).detach()


class ErrorQuantizer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, bits, noise):
        ctx.bits, ctx.noise = bits, noise
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        return per_tensor(g, ctx.bits, None if ctx.noise is None else ctx.noise(g)), None, None


@dataclass
class Naive:
    """The gated CIFAR ResNet. ``statistics`` collects (mean, unbiased variance) of every batch norm pass, by name."""

    parameters: dict[str, torch.Tensor]
    blocks: Sequence[str]
    strides: Sequence[int]
    candidates: Sequence[tuple[int, int, int]]  # activation, weight, error bits
    noise: Noise | None = None
    statistics: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=dict)
    masks: list[torch.Tensor] = field(default_factory=list)
    probabilities: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        p = self.parameters
        h = F.relu(self.norm("stem.1", F.conv2d(x, p["stem.0.weight"], padding=1)))
        size = p["precision_gate.head.weight"].shape[1]
        state = (h.new_zeros(len(x), size), h.new_zeros(len(x), size))
        for i, name in enumerate(self.blocks):
            mask, state = self.gate(i, h, state)
            out = torch.zeros(())
            for k in range(len(self.candidates)):
                out = out + mask[:, k].view(-1, 1, 1, 1) * self.block(name, self.strides[i], h, k)
            h = out
        return h.mean(dim=(2, 3)) @ p["head.weight"].t() + p["head.bias"]

    def gate(self, i, h, state):
        p, (hidden, cell) = self.parameters, state
        name = f"precision_gate.features.{i}."
        z = h.mean(dim=(2, 3)) @ p[name + "0.weight"].t() + p[name + "0.bias"]
        z = F.relu(z) @ p[name + "2.weight"].t() + p[name + "2.bias"]
        name = "precision_gate.cell."
        s = z @ p[name + "weight_ih"].t() + p[name + "bias_ih"]
        s = s + hidden @ p[name + "weight_hh"].t() + p[name + "bias_hh"]
        take, forget, new, show = s.chunk(4, dim=1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(take) * torch.tanh(new)
        hidden = torch.sigmoid(show) * torch.tanh(cell)
        scores = hidden @ p["precision_gate.head.weight"].t() + p["precision_gate.head.bias"]
        probs = torch.softmax(scores, dim=1)
        hard = F.one_hot(probs.argmax(dim=1), probs.shape[1]).to(probs.dtype)
        mask = hard - probs.detach() + probs
        self.masks.append(mask)
        self.probabilities.append(probs)
        return mask, (hidden, cell)

    def block(self, name, stride, x, k):
        y = F.relu(self.norm(f"{name}.block.bn1", self.conv(name, "conv1", x, stride, 1, k)))
        y = self.norm(f"{name}.block.bn2", self.conv(name, "conv2", y, 1, 1, k))
        if f"{name}.block.shortcut.0.weight" in self.parameters:
            x = self.norm(f"{name}.block.shortcut.1", self.conv(name, "shortcut.0", x, stride, 0, k))
        return F.relu(y + x)

    def conv(self, block, layer, x, stride, padding, k):
        a, w, e = self.candidates[k]
        weight = self.parameters[f"{block}.block.{layer}.weight"]
        qx, qw = straight(x, per_tensor(x.detach(), a)), straight(weight, per_filter(weight.detach(), w))
        y = F.conv2d(qx, qw, None, stride, padding)
        noise = None if self.noise is None else lambda g: self.noise(f"{block}.{layer}", k, g)
        return ErrorQuantizer.apply(y, e, noise)

    def norm(self, name, y):
        n = y.numel() / y.shape[1]
        mean = y.mean(dim=(0, 2, 3))
        centred = y - mean.view(1, -1, 1, 1)
        var = (centred**2).mean(dim=(0, 2, 3))
        self.statistics.setdefault(name, []).append((mean.detach(), var.detach() * n / (n - 1)))
        y = centred / torch.sqrt(var + 1e-5).view(1, -1, 1, 1)
        gamma, beta = self.parameters[name + ".weight"], self.parameters[name + ".bias"]
        return y * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)
