"""Training steps recorded on a GPU and replayed: a step of small layers is thousands of launches, and the host is late.

A CUDA graph holds the kernels of one step - zeroing gradients, forward, backward, optimizer - with the addresses they
work on, and starts them all at once. Nothing of Python runs in a replay, so whatever changes from step to step has to
be on the device: images and targets are copied to where the recording reads them, and so are the learning rate and the
keys of stochastic rounding (:class:`fractrain.numerics.stochastic_rounding.NoiseTable`). What the host counts in a
step is always the
same and counted again (:meth:`fractrain.cost.ledger.Ledger.repeat`). A method says what else a step depends on
(:meth:`fractrain.methods.base.Method.step_key`): a new key is a new recording.

A recording is not believed before it was compared: its second step is done again without it, from the same weights. If
the two updates differ, or a step cannot be recorded at all, the run goes on without recordings, with one log line.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

import torch

from fractrain.cost.ledger import Ledger, Recorded
from fractrain.distributed.ranks import StepSums
from fractrain.methods.base import Method
from fractrain.numerics.stochastic_rounding import NoiseTable

T = TypeVar("T")
WARM_UP: Final = 3  # steps of a kind before one is recorded: they create what lasts, momentum for one
KEPT: Final = 8  # recordings; of a method whose precision wanders, the last ones used
SETTLED: Final = WARM_UP + 2  # steps until one is as fast as all that follow: the second replay is checked
AGREE: Final = 0.2  # of an update's norm, per tensor: above what the order of sums does, below a wrong input's effect
ROUNDING: Final = 100.0

Work = Callable[[torch.Tensor, torch.Tensor], StepSums]
log = logging.getLogger(__name__)


class Recorder(Protocol):
    """What can record work on a device."""

    def warm(self, work: Callable[[], T]) -> tuple[T, str | None]:
        """Do work that will be recorded later; say why it cannot be, as far as doing it shows."""
        ...

    def record(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Record work without doing it; return what replays it, and its result, whose tensors a replay writes."""
        ...

    def forget(self) -> None:
        """All recordings are dropped."""
        ...

    def random_state(self) -> Any:
        """The device's generator, for :meth:`set_random_state`."""
        ...

    def set_random_state(self, state: Any) -> None:
        """Put the generator back."""
        ...


class CudaGraphs:
    """Records on a CUDA device. All recordings share memory: their results are only good until the next replay."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle()

    def warm(self, work: Callable[[], T]) -> tuple[T, str | None]:
        """On a stream of its own, as PyTorch asks for before a capture; its warnings tell of waiting for the device."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as told, torch.cuda.stream(self._stream):
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                result = work()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        waits = any("synchroniz" in str(w.message) for w in told)
        return result, "the host waits for the device in them" if waits else None

    def record(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Capture a graph."""
        graph, outer = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        gc.collect()  # a graph that is destroyed while another is captured would spoil it
        collects = gc.isenabled()
        gc.disable()
        try:
            # Other threads, such as those that load data, may go on using the device.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = work()
        finally:
            torch.cuda.set_stream(outer)  # also where the capture has failed
            if collects:
                gc.enable()
        return graph.replay, result

    def forget(self) -> None:
        """Memory of graphs that are gone cannot be shared with new ones."""
        self._pool = torch.cuda.graph_pool_handle()

    def random_state(self) -> Any:
        """Of the device's default generator, which captured work draws from."""
        return torch.cuda.get_rng_state(self._device)

    def set_random_state(self, state: Any) -> None:
        """Put it back."""
        torch.cuda.set_rng_state(state, self._device)


def recorder_for(device: torch.device, graphs: str = "auto") -> Recorder | None:
    """What records steps on a device; None where nothing does, or with ``graphs=off``."""
    return CudaGraphs(device) if device.type == "cuda" and graphs == "auto" else None


@dataclass
class _Recording:
    replay: Callable[[], None]
    x: torch.Tensor
    y: torch.Tensor
    sums: StepSums
    counted: list[Recorded]
    uses: int = 0


class RecordedSteps:
    """Does training steps by recordings where it can.

    Args:
        recorder: of the device.
        method: whose steps they are; its state is given a noise table on the device.
        ledger: where a step's products are counted.
        device: of model and batches.
        lasting: the tensors that a step changes and the next one reads (weights, statistics, momentum).
    """

    def __init__(
        self, recorder: Recorder, method: Method, ledger: Ledger, device: torch.device,
        lasting: Callable[[], Iterable[torch.Tensor]],
    ) -> None:  # fmt: skip
        self._recorder, self._method, self._ledger, self._lasting = recorder, method, ledger, lasting
        self._table = NoiseTable(method.state.seed, device)
        self._rate = torch.zeros((), device=device)
        self._seen: dict[Hashable, int] = {}
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._made = 0
        self.on = True

    def set_rate(self, rate: float) -> torch.Tensor:
        """The learning rate as the tensor that recordings read, 0-dim float32.

        Adam computes with it in double: rates that float32 has not give other last bits than steps never recorded.
        """
        return self._rate.fill_(rate)

    def forget(self) -> None:
        """Drop all recordings: what they work on has moved."""
        self._recordings.clear()
        self._seen.clear()
        self._recorder.forget()

    def run(self, step: int, x: torch.Tensor, y: torch.Tensor, work: Work) -> StepSums | None:
        """Do one step by a recording.

        Args:
            step: its number.
            x, y: the batch.
            work: the step without recording; what it counts and returns is the same for every batch of a shape.

        Returns:
            The step's sums, without a graph; None where nothing was done and the caller has to do ``work`` himself.
        """
        if not self.on:
            return None
        key = self._method.step_key(step)
        if key is None:
            self._stop(None)
            return None
        key = (key, x.shape, x.dtype, x.stride(), y.shape, y.dtype)
        self._method.state.table = self._table
        self._table.set_step(step)
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] <= WARM_UP:
            done, why = self._recorder.warm(lambda: work(x, y))
            if why is not None and self._seen[key] == WARM_UP:  # before, what is tried once per process may have waited
                self._stop(why)
            return done
        made = self._recordings.get(key)
        if made is None:
            try:
                made = self._recordings[key] = self._record(x, y, work)
            except (RuntimeError, LookupError, NotImplementedError) as problem:
                first = problem.__context__ or problem  # ending a spoilt capture fails, too
                self._stop(str(first).partition("\n")[0] or type(first).__name__)
                return None
        self._recordings.move_to_end(key)
        if len(self._recordings) > KEPT:
            self._recordings.popitem(last=False)
        made.uses += 1
        return self._checked(made, x, y, work) if made.uses == 2 else self._replay(made, x, y)

    def _stop(self, why: str | None) -> None:
        """Go on without recordings, for good."""
        self.on = False
        self._method.state.table = None
        self.forget()
        if why is not None:
            log.warning("steps of %s are not recorded (%s); going on step by step", self._method.name, why)

    def _record(self, x: torch.Tensor, y: torch.Tensor, work: Work) -> _Recording:
        own_x, own_y = x.clone(), y.clone()
        self._made += 1
        self._table.recording = self._made
        try:
            with self._ledger.recording() as counted:
                replay, sums = self._recorder.record(lambda: without_graph(work(own_x, own_y)))
        finally:
            self._table.recording = None
        return _Recording(replay, own_x, own_y, sums, counted)

    def _replay(self, made: _Recording, x: torch.Tensor, y: torch.Tensor) -> StepSums:
        made.x.copy_(x)
        made.y.copy_(y)
        made.replay()
        self._ledger.repeat(made.counted)
        s = made.sums  # the next replay writes to these tensors
        extra, correct = (None if v is None else v.clone() for v in (s.extra, s.correct))
        return StepSums(s.total.clone(), s.total.clone(), s.loss.clone(), extra, correct, s.count)

    def _checked(self, made: _Recording, x: torch.Tensor, y: torch.Tensor, work: Work) -> StepSums | None:
        """Replay a step, then do it again without the recording, whose result counts; stop if they differ."""
        random = self._recorder.random_state()
        try:
            before = [t.detach().clone() for t in self._lasting()]
        except torch.OutOfMemoryError:
            self._stop("there is no memory to check a recording")
            return None
        with self._ledger.recording():  # what was counted is thrown away
            self._replay(made, x, y)
        replayed = list(self._lasting())
        with torch.no_grad():  # swap: `before` holds what the replay has made of it
            for tensor, old in zip(replayed, before, strict=True):
                new = tensor.clone()
                tensor.copy_(old)
                old.copy_(new)
        self._recorder.set_random_state(random)
        start = [t.detach().clone() for t in replayed]
        done, _ = self._recorder.warm(lambda: work(x, y))
        apart = _apart(start, before, replayed)
        if not apart <= AGREE:  # nan as well
            self._stop(f"a replayed update differs from the same update by {apart:.0%}")
        return without_graph(done)


def without_graph(done: StepSums) -> StepSums:
    """A step's sums, with nothing left to go backward from."""
    return replace(done, objective=done.total)


@torch.no_grad()
def _apart(before: list[torch.Tensor], replayed: list[torch.Tensor], done: list[torch.Tensor]) -> float:
    """Norm of the difference of two updates over the norm of the second, at its greatest over all tensors.

    Where a tensor has hardly changed, differences are measured by the rounding of its values.
    """
    worst = [torch.zeros((), dtype=torch.float64, device=done[0].device)]
    for b, r, d in zip(before, replayed, done, strict=True):
        if d.is_floating_point() and d.numel():
            x, y, z = (t.double() for t in (b, r, d))
            floor = ROUNDING * float(torch.finfo(d.dtype).eps) * (1.0 + z.norm())
            worst.append((y - z).norm() / ((z - x).norm() + floor))
    return float(torch.stack(worst).max())
