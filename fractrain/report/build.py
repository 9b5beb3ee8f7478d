"""Build a table: the specification, the run store and the published rows become one :class:`Table` value."""

from __future__ import annotations

from collections.abc import Sequence

from fractrain.engine.length import Profile, check_profile, length_text
from fractrain.engine.recipes import TRANSFER_NOTE
from fractrain.report.arrays import array_sections
from fractrain.report.columns import columns, rules
from fractrain.report.format_errors import COLUMNS, RULES, FormatErrors, error_rows
from fractrain.report.grid import plan
from fractrain.report.improve import improvement_rows
from fractrain.report.relative import judged_claims, with_relative
from fractrain.report.rows import MethodRow, method_row
from fractrain.report.savings import savings_section
from fractrain.report.smoke import smoke_columns, smoke_rules, smoke_spec
from fractrain.report.sources import PublishedIndex, Sources, Store, default_sources
from fractrain.report.spec import TableSpec
from fractrain.report.values import Row, Section, Table


def build_table(
    spec: TableSpec, store: Store | None, profile: str, seeds: int | Sequence[int] | None = None,
    sources: Sources | None = None, modelled: bool = False,
) -> Table:  # fmt: skip
    """Build one table.

    Args:
        spec: from :func:`fractrain.report.spec.load_spec`.
        store: the run store; None shows the published values alone.
        profile: ``smoke``, ``short`` or ``paper``: whose runs fill the measured columns.
        seeds: a number (then 0, 1, ...) or a list; default: the table's number for this profile.
        sources: configurations, costs and published rows; default: the engine's and the package's own.
        modelled: show energy and latency by the hardware model of smoke runs, too, because it was asked for by name.

    Raises:
        ConfigError: unknown profile.
    """
    known = check_profile(profile)
    if spec.errors is not None:
        return _errors_table(spec, spec.errors, known)
    smoke = known == "smoke"
    spec = smoke_spec(spec, modelled) if smoke else spec
    sources = sources or default_sources()
    index = PublishedIndex(sources.published, spec.published_table)
    runs = plan(spec, known, seeds, store, sources)
    rows: list[Row] = []
    notes: list[str] = []
    caveats: list[tuple[Row, str]] = []
    whole: dict[str, dict[str, MethodRow]] = {}
    for pair in spec.pairs:
        built = whole[f"{pair.key}/{pair.setting}"] = {}
        for row in spec.rows_of(pair):
            own = [r for r in runs if r.pair == pair and r.row == row]
            built[row.key] = method_row(spec, pair, row, own, sources, index)
            notes += built[row.key].notes
            caveats += [(built[row.key].row, m.caveat) for m in built[row.key].measured.values() if m.caveat]
        rows += (own_rows := [with_relative(spec, pair, row, built, index, known) for row in spec.rows_of(pair)])
        notes += [note for row in own_rows for note in judged_claims(spec, row)] if known == "paper" else []
        more, remarks = improvement_rows(spec, pair, spec.dataset(pair, known), known, built, index)
        rows += more
        notes += remarks
    sections: list[Section] = []
    if not smoke:
        savings = savings_section(spec, known, whole, index)
        sections = [*([savings] if savings else []), *array_sections(spec, known, runs, sources, index)]
    transferred = [TRANSFER_NOTE] if any(pair.setting != "standard" for pair in spec.pairs) else []
    return Table(
        name=spec.name, version=spec.version, title=_title(spec, known), caption=spec.caption, source=spec.source,
        profile=known, seeds=tuple(dict.fromkeys(r.seed for r in runs)), watermark=_watermark(spec, known),
        columns=smoke_columns(columns(spec)) if smoke else columns(spec), rows=tuple(rows),
        notes=tuple(dict.fromkeys([*notes, *spec.notes, *transferred, *_extrapolated(caveats)])),
        rules=smoke_rules(spec) if smoke else rules(spec),
        sections=tuple(sections),
    )  # fmt: skip


def _errors_table(spec: TableSpec, errors: FormatErrors, profile: str) -> Table:
    """A table of what number formats do to a tensor: the same in every profile, and a reproduction in each."""
    return Table(
        name=spec.name, version=spec.version, title=spec.title, caption=spec.caption, source=spec.source,
        profile=profile, seeds=tuple(range(errors.seeds)), watermark="", columns=COLUMNS,
        rows=tuple(error_rows(errors, spec.source)), notes=spec.notes, rules=RULES,
    )  # fmt: skip


# -- title -----------------------------------------------------------------------------------------------------------


def _stand_ins(spec: TableSpec, profile: Profile) -> str:
    """Name each data set that something else stands in for, for example ``digits for CIFAR-10``."""
    pairs = {spec.dataset(p, profile): p.dataset_label for p in spec.pairs if spec.dataset(p, profile) != p.dataset}
    return ", ".join(f"{used} for {label}" for used, label in pairs.items())


def _title(spec: TableSpec, profile: Profile) -> str:
    used = _stand_ins(spec, profile)
    return f"{spec.title} [{length_text(profile)}{': stand-in data ' + used if used else ''}]"


def _watermark(spec: TableSpec, profile: Profile) -> str:
    if profile == "paper":
        return ""
    used = _stand_ins(spec, profile)
    if profile == "smoke":
        data = f" on other data ({used})" if used else ""
        return f"NOT A REPRODUCTION: minutes-long runs{data}, which show that everything works, nothing about a paper."
    how = f"much shorter runs on other data ({used})" if used else "much shorter runs"
    return (
        f"NOT A REPRODUCTION: measured columns are from {length_text(profile)}, {how}; "
        "published columns are the paper's, so the two must not be compared."
    )


def _extrapolated(caveats: Sequence[tuple[Row, str]]) -> list[str]:
    """One note for all rows whose energy and latency the hardware model was not fitted for."""
    if not caveats:
        return []
    rows = {(row.group, row.text("label")) for row, _ in caveats}
    row, caveat = caveats[0]
    return [
        f"Energy and latency of {len(rows)} row{'s' if len(rows) > 1 else ''} are extrapolations; for example "
        f"{row.group}, {row.text('method')}: {caveat}. The CSV, JSON and HTML forms say why for each."
    ]
