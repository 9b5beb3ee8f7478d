"""Keep tracers out of forward passes that run compiled kernels, count work and draw numbers by step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import fx
from torch._subclasses import FakeTensor

from fractrain.util.errors import ConfigError

Forward = TypeVar("Forward", bound=Callable[..., Any])
PROXIES = torch._C._TorchDispatchModeKey.PROXY  # of make_fx
REASON = "layers of fractrain run outside of compiled graphs"
NOT_TRACED = (
    "a model with layers of fractrain cannot be traced (torch.fx, torch.jit.trace, torch.export): trace the plain "
    "model with these weights, or use torch.compile, which leaves such layers out of its graphs"
)


def eager(forward: Forward) -> Forward:
    """Run a module's ``forward`` as plain Python, whatever traces it.

    ``torch.compile`` breaks its graph there and gives the bits of eager mode. A trace by ``torch.fx``,
    ``torch.jit.trace`` or ``torch.export`` is refused: it would hold one step's constants and count nothing.

    Raises:
        ConfigError: (by the returned function) it is being traced.
    """

    @functools.wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            if torch.compiler.is_exporting():
                raise ConfigError(NOT_TRACED)
            return torch.compiler.disable(forward, reason=REASON)(self, *args, **kwargs)  # type: ignore[no-untyped-call]
        first = args[0] if args else next(iter(kwargs.values()), None)
        symbolic = type(first) is not torch.Tensor and isinstance(first, fx.Proxy | FakeTensor)
        if symbolic or torch._C._get_tracing_state() is not None or torch._C._get_dispatch_mode(PROXIES) is not None:
            raise ConfigError(NOT_TRACED)
        return forward(self, *args, **kwargs)

    return run  # type: ignore[return-value]
