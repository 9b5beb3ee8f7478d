"""Max pooling of channels-last images that keeps one byte per output: its place in the window. PyTorch's bits."""

from __future__ import annotations

import numpy as np
from numba import prange

from fractrain.kernels.cpu.quantize import builds


def _max_pool(x, kernel, stride, padding, y, places):  # type: ignore[no-untyped-def]
    # x [N, H, W, C], y and places [N, H', W', C]
    for n in prange(x.shape[0]):
        for i in range(y.shape[1]):
            top = i * stride[0] - padding[0]
            for j in range(y.shape[2]):
                left = j * stride[1] - padding[1]
                best, place = y[n, i, j], places[n, i, j]
                best[:] = np.float32(-np.inf)
                place[:] = np.uint8(max(0, -top) * kernel[1] + max(0, -left))  # stays where everything is -inf
                for a in range(max(0, -top), min(kernel[0], x.shape[1] - top)):
                    for b in range(max(0, -left), min(kernel[1], x.shape[2] - left)):
                        here, k = x[n, top + a, left + b], np.uint8(a * kernel[1] + b)
                        for c in range(best.shape[0]):
                            better = here[c] > best[c] or np.isnan(here[c])
                            best[c] = here[c] if better else best[c]
                            place[c] = k if better else place[c]


def _max_unpool(g, places, kernel, stride, padding, dx):  # type: ignore[no-untyped-def]
    # dx [N, H, W, C], all zero; outputs in PyTorch's order, because their sums are rounded
    for n in prange(g.shape[0]):
        for i in range(g.shape[1]):
            for j in range(g.shape[2]):
                top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
                for c in range(g.shape[3]):
                    k = places[n, i, j, c]
                    dx[n, top + k // kernel[1], left + k % kernel[1], c] += g[n, i, j, c]


max_pool, max_unpool = builds(_max_pool), builds(_max_unpool)
