"""Clipping: torch.clamp's values, gradients within the limits and at them, and a byte per element kept."""

from __future__ import annotations

import pytest
import torch
from quant_helpers import tensor

from fractrain.layers.clip import clip

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("limits", [(0.0, 0.5), (-0.25, 1.0), (torch.tensor(-1.0), torch.tensor(0.25))], ids=str)
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 5)], ids=str)
def test_gradients_pass_within_the_limits_and_at_them(shape, limits) -> None:
    x, g = tensor(shape, 0), tensor(shape, 1)
    ends = [NAN, INF, -INF, float(limits[0]), float(limits[1])]
    for t, special in ((x, ends), (g, [INF, NAN, INF, 3.0, 4.0])):
        for at, value in enumerate(special):
            t[tuple(torch.unravel_index(torch.tensor(at), shape))] = value
    inputs = x.clone().requires_grad_()
    y = clip(inputs, *limits)
    y.backward(g)
    low, high = map(float, limits)
    values = zip(x.flatten().tolist(), g.flatten().tolist(), strict=True)
    want = [gradient if low <= value <= high else 0.0 for value, gradient in values]
    assert inputs.grad.flatten().tolist() == want  # inf and nan that come back do not pass either
    assert want[3:5] == [3.0, 4.0]
    assert torch.equal(y[~x.isnan()], x.clamp(*limits)[~x.isnan()])
    assert torch.equal(y.isnan(), x.isnan())


def test_a_byte_per_element_is_kept() -> None:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        clip(tensor((40, 25), 0).requires_grad_(), 0.0, 1.0)
    assert kept == [1000]
