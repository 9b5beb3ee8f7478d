"""The part of a specification that sets rows against each other: relative columns, and what the sources claim."""

from __future__ import annotations

import pydantic

from fractrain.report.quantities import QuantityKey


class Strict(pydantic.BaseModel):
    """A section of a specification: closed, unchangeable, no types converted."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class Claim(Strict):
    """What a row's source claims: a metric of the published rows, shown in a column of its own.

    Attributes:
        metric: as in the published rows; empty: what the published numbers of the two rows give, a difference or a
            saving. Such a claim is judged.
        label, short: first words of the column's heading, and its heading in the compact layout.
        saving: the metric is a saving of cost in percent. It is shown as the ratio that it means, and a column beside
            our own ratio judges it; otherwise the claim stands in the source's words, and nobody judges it.
        tolerance: half the width of the zone around the claim, in percentage points (of saving or accuracy) or in
            perplexity: what the source leaves open.
    """

    metric: str = ""
    label: str
    short: str = ""
    saving: bool = False
    tolerance: float = pydantic.Field(default=0.5, ge=0)

    @property
    def judged(self) -> bool:
        """Whether a column judges it."""
        return self.saving or not self.metric


class Relative(Strict):
    """A column that sets each row against another one of its pair (``against`` of the row).

    Accuracy is a difference in points; costs are ratios, the other row's cost by the row's own: a factor saved.

    Attributes:
        quantity: key of the measured column that is compared.
        label: first words of the heading, for example ``Speed-up``.
        short: heading of the compact layout; empty: not shown there.
        claim: what the row's source says of it; None: nothing.
    """

    quantity: QuantityKey
    label: str
    short: str = ""
    claim: Claim | None = None

    @pydantic.model_validator(mode="after")
    def _only_costs_are_saved(self) -> Relative:
        if self.claim and self.claim.saving and self.quantity.startswith(("accuracy", "perplexity")):
            raise ValueError(f"claim.saving: {self.quantity} is no cost")
        return self


class Arrays(Strict):
    """Sections on widths: those of the rows that are set against others, and what hardware models make of claims.

    Attributes:
        hardware: the models, with settings as ``--hardware`` takes them.
        widths: that a tile may have, ascending.
        speed, energy: metrics of the published claims, each a factor over the row that is set against.
    """

    hardware: tuple[str, ...] = pydantic.Field(min_length=1, strict=False)
    widths: tuple[int, ...] = pydantic.Field(min_length=1, strict=False)
    speed: str
    energy: str

    @pydantic.model_validator(mode="after")
    def _ascending(self) -> Arrays:
        if list(self.widths) != sorted(set(self.widths)) or self.widths[0] < 1:
            raise ValueError(f"widths must be whole bits, ascending, got {self.widths}")
        return self


class CostDrawing(Strict):
    """A drawing of what a training step costs, and where: bars by part and product, and curves along training.

    Attributes:
        hardware: the two models, with settings as ``--hardware`` takes them.
        bars, along: keys of the rows with a bar, and with a curve.
    """

    hardware: tuple[str, ...] = pydantic.Field(min_length=2, max_length=2, strict=False)
    bars: tuple[str, ...] = pydantic.Field(min_length=1, strict=False)
    along: tuple[str, ...] = pydantic.Field(min_length=1, strict=False)
