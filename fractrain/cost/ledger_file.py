"""The schema of ``ledger.json``, which holds what :meth:`fractrain.cost.ledger.Ledger.state_dict` returns."""

from __future__ import annotations

from typing import Annotated, Any, Final

import pydantic
from pydantic import Field

from fractrain.cost.ledger import FORMAT_VERSION, Entry, Ledger, Phase
from fractrain.util.schema import read_json

_Count = Annotated[int, Field(ge=0)]


class _Meta(pydantic.BaseModel):
    """Facts about the run that cost figures need."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True)

    forward_macs: _Count | None = None
    blocks: list[str] | None = None
    block_weights: dict[str, float] | list[float] | None = None
    batch_size: _Count | None = None


class _LedgerFile(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    version: int
    meta: _Meta
    work: dict[str, list[Entry]]
    units: list[tuple[Phase, _Count, str, _Count]]
    samples: list[tuple[Phase, _Count, _Count]]

    @pydantic.model_validator(mode="after")
    def _whole(self) -> _LedgerFile:
        if self.version != FORMAT_VERSION:
            raise ValueError(f"ledger format {self.version}, this release reads {FORMAT_VERSION}")
        for entry in (entry for entries in self.work.values() for entry in entries):
            if min(n for n in entry if isinstance(n, int)) < 0:
                raise ValueError(f"negative numbers in {tuple(entry)}")
        if unknown := {unit[2] for unit in self.units} - self.work.keys():
            raise ValueError(f"counts of {min(unknown)!r}, which is no work item of it")
        return self


_FILE: Final = pydantic.TypeAdapter(_LedgerFile)
_OBJECT: Final = pydantic.TypeAdapter(dict[str, Any])


def read_ledger(content: bytes) -> Ledger:
    """Return the ledger that a ``ledger.json`` holds.

    Raises:
        ValueError: not JSON, of another format version, or not a ledger; one line.
    """
    read_json(_FILE, content)
    ledger = Ledger()
    ledger.load_state_dict(read_json(_OBJECT, content))
    return ledger
