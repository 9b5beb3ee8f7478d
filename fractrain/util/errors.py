"""Errors a user can meet. Each one says what is wrong, where, and how to mend it, in one line.

The command line prints ``str(error)`` and exits with ``error.exit_code``: 2 for wrong usage or bad input, 1 for a run
that failed while running.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator


class FractrainError(Exception):
    """Base of all errors that are reported as one line instead of a traceback."""

    exit_code = 2


class ConfigError(FractrainError):
    """A name, setting, type or combination in a configuration is wrong."""


class DataError(FractrainError):
    """A data set is missing, incomplete or corrupt."""


class CheckpointError(FractrainError):
    """A checkpoint is truncated, from another version, or belongs to another run."""


class StoreError(FractrainError):
    """The run store cannot be read or written (permissions, disk full, foreign content)."""


class DiskError(StoreError):
    """The disk filled up, vanished, or refused, while a run was writing: a failure at run time."""

    exit_code = 1


class PluginError(FractrainError):
    """A method plugin cannot be found, imported or accepted."""


class MachineError(FractrainError):
    """The machine lacks something that was asked for (a GPU, a package, a network)."""


class RunError(FractrainError):
    """A run failed while it was running."""

    exit_code = 1


class NonFiniteError(RunError):
    """A tensor held inf or nan.

    Attributes:
        layer: name of the module in which it was first seen.
        step: training step (0-based), or None outside training.
    """

    def __init__(self, message: str, layer: str = "", step: int | None = None) -> None:
        super().__init__(message)
        self.layer = layer
        self.step = step


@contextlib.contextmanager
def needed(message: str) -> Iterator[None]:
    """Make a :class:`MachineError` of an import inside the block that fails; ``{}`` in the message is the reason."""
    try:
        yield
    except ImportError as error:
        raise MachineError(message.replace("{}", str(error))) from error


def message_line(error: BaseException) -> str:
    """Return the message of an exception without line breaks; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def typed_line(error: BaseException) -> str:
    """Return type and message of an exception without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest known name, or an empty string."""
    small = {one.lower(): one for one in known}
    alike = [one for one in small if not _other_number(name.lower(), one)]
    near = difflib.get_close_matches(name.lower(), alike, n=1, cutoff=0.5)
    return f" (did you mean {small[near[0]]!r}?)" if near else ""


def _other_number(name: str, known: str) -> bool:
    """Whether two names differ in a number alone, and not by a slip: ``resnet20`` does not mean ``resnet74``.

    Numbers in a path (``groups.0.1``) are places, whose neighbours are worth naming.
    """
    if "." in name:
        return False
    digits = [re.sub(r"[^0-9]", "", text) for text in (name, known)]
    letters = [re.sub(r"[0-9]", "", text) for text in (name, known)]
    slip = sorted(digits[0]) == sorted(digits[1]) or digits[0] in _one_less(digits[1])
    return letters[0] == letters[1] and not (slip or digits[1] in _one_less(digits[0]))


def _one_less(text: str) -> list[str]:
    return [text[:at] + text[at + 1 :] for at in range(len(text))]
