"""A device that is not the CPU, computed on the CPU: to run, record and replay what a GPU would, where there is none.

Its tensors say that they are on ``meta``, so that code takes the branches of a device other than the CPU; the numbers
are real. While work is recorded, whatever a CUDA graph cannot hold is an error: reading the device, results whose size
depends on data, copies between host and device. A replay does the recorded operations again, on the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense, aten.item, aten.nonzero, aten.masked_select, aten._unique2, aten.bincount,
    aten.is_nonzero, aten.equal, aten.repeat_interleave, aten.unique_dim, aten.allclose,
}  # fmt: skip
EMPTY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}


class Pretended(torch.Tensor):
    """A tensor on the pretended device, around one on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Pretended:
        new = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip
        new.inner = inner
        return new

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:  # torch's own refuses subclasses
        return self.cpu().tolist()

    def new_tensor(self, data: Any, **options: Any) -> torch.Tensor:
        return torch.tensor(data, dtype=options.get("dtype", self.dtype), device=DEVICE)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Pretended({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of pretending()")


def real(x: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor."""
    return x.inner if isinstance(x, Pretended) else x.detach()


class Device(TorchDispatchMode):
    """Computes what is on the device, and records it on demand; a recorder for the engine, too."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, Any, Any, list[torch.Tensor]]] | None = None
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.records = self.replays = 0
        self.watches = True  # whether warming up says what cannot be recorded
        self.seen: list[str] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat = tree_flatten((args, kwargs))[0]
        ours = [t for t in flat if isinstance(t, Pretended)]
        target = kwargs.get("device")
        here = bool(ours) if target is None else torch.device(target) == DEVICE
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        if self.tape is not None and (ours or here):
            self._allowed(func, flat, ours, here)
        if self.seen is not None and ours and func.overloadpacket in WAITS:
            self.seen.append(f"{func} waits for the device")
        outer = {id(t.inner): t for t in ours}
        inner_args, inner_kwargs = tree_map(lambda t: t.inner if isinstance(t, Pretended) else t, (args, kwargs))
        taped = self.tape is not None and (ours or here)
        if taped:
            self._keep_what_is_changed(func, inner_args, inner_kwargs)
        out = func(*inner_args, **inner_kwargs)
        if taped:
            assert self.tape is not None
            outs = [t for t in tree_flatten(out)[0] if isinstance(t, torch.Tensor)]
            self.tape.append((func, inner_args, inner_kwargs, outs))
        if not here:
            return out

        def wrapped(t: Any) -> Any:
            if not isinstance(t, torch.Tensor):
                return t
            return outer[id(t)] if id(t) in outer else Pretended(t)

        return tree_map(wrapped, out)

    def _allowed(self, func: Any, flat: list[Any], ours: list[Pretended], here: bool) -> None:
        packet = func.overloadpacket
        if packet in WAITS:
            raise RuntimeError(f"{func} waits for the device")
        if packet is aten.index and any(t.dtype == torch.bool for t in ours):
            raise RuntimeError(f"{func} by a mask waits for the device")
        plain = [t for t in flat if isinstance(t, torch.Tensor) and not isinstance(t, Pretended)]
        if not here or plain:
            raise RuntimeError(f"{func} copies between host and device")

    def _keep_what_is_changed(self, func: Any, args: Any, kwargs: Any) -> None:
        for place, argument in enumerate(func._schema.arguments):
            said = argument.alias_info is not None and argument.alias_info.is_write
            if not said and argument.name not in ("running_mean", "running_var"):  # BatchNorm's does not say so
                continue
            value = kwargs.get(argument.name, args[place] if place < len(args) else None)
            for t in tree_flatten(value)[0]:
                if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self.before:
                    whole = t.new_empty(0).set_(t.untyped_storage())  # type: ignore[call-overload]
                    self.before[t.untyped_storage().data_ptr()] = (whole, whole.clone())

    # -- a recorder, see fractrain.experimental.cuda_graphs.Recorder --------------

    def warm(self, work: Callable[[], Any]) -> tuple[Any, str | None]:
        """On a GPU only waiting shows, and not in all cases."""
        self.seen = []
        try:
            result = work()
            return result, self.seen[0] if self.seen and self.watches else None
        finally:
            self.seen = None

    def forget(self) -> None:
        pass

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Do the work to learn its operations, then undo it: recording does nothing."""
        assert self.tape is None
        random = torch.get_rng_state()
        self.tape, self.before = [], {}
        try:
            result = work()
        finally:
            tape, self.tape = self.tape, None
            with torch.no_grad():
                for whole, old in self.before.values():
                    whole.copy_(old)
            torch.set_rng_state(random)
        self.records += 1
        return lambda: self._replay(tape), result

    @torch.no_grad()
    def _replay(self, tape: list[tuple[Any, Any, Any, list[torch.Tensor]]]) -> None:
        self.replays += 1
        for func, args, kwargs, outs in tape:
            if func.overloadpacket in EMPTY:
                continue
            again = [t for t in tree_flatten(func(*args, **kwargs))[0] if isinstance(t, torch.Tensor)]
            for old, new in zip(outs, again, strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)

    def random_state(self) -> torch.Tensor:
        return torch.get_rng_state()

    def set_random_state(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


@contextmanager
def pretending() -> Iterator[Device]:
    """Inside the block there is such a device; optimizers may be fused on it."""
    optimizers: Any = import_module("torch.optim.optimizer")
    supported = optimizers._get_fused_kernels_supported_devices
    make = torch.tensor

    def from_host(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        if device is None or torch.device(device) != DEVICE or isinstance(data, Pretended):
            return make(data, device=device, **options)
        return make(data, **options).to(DEVICE)  # as it is on a GPU: a copy

    with (
        patch.object(torch, "tensor", from_host),
        patch.object(
            torch, "as_tensor", lambda data, **o: data if isinstance(data, Pretended) else from_host(data, **o)
        ),
        patch.object(optimizers, "_get_fused_kernels_supported_devices", lambda: [*supported(), DEVICE.type]),
        patch.object(import_module("torch.nn.utils.clip_grad"), "_device_has_foreach_support", lambda device: True),
        patch("fractrain.methods.optimizer.FUSED_DEVICES", ("cpu", "cuda", DEVICE.type)),
        Device() as device,
    ):
        yield device
