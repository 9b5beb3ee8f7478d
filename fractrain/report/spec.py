"""Table and figure specifications: which runs they consist of, read from ``benchmarks/{tables,figures}/*.toml``.

A specification lists model/data pairs, rows (one method each) and, for each profile, what differs (stand-in data,
settings, recipe, number of seeds). A figure is a table that is also drawn: it has a ``[figure]`` section. Both are
closed: an unknown key is an error that names the file and the key.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic

from fractrain.engine.length import MAX_SEEDS, PROFILES, Profile
from fractrain.methods.presets import paper_settings
from fractrain.report.format_errors import FormatErrors
from fractrain.report.quantities import ColumnKey, QuantityKey
from fractrain.report.verdict import VerdictRule
from fractrain.util.errors import ConfigError, did_you_mean
from fractrain.util.schema import Strict


class PublishedClaim(Strict):
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
    claim: PublishedClaim | None = None

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


Setting = Literal["standard", "adaptation", "fine-tuning"]
Named = Literal["smoke", "short", "paper"]
Closed = TypeVar("Closed", bound=Strict)


class Override(Strict):
    """What one profile changes in one row: settings of the method and keys of the training recipe."""

    settings: dict[str, Any] = {}
    recipe: dict[str, Any] = {}


class ProfileSpec(Override):
    """What one profile changes in the whole table.

    Attributes:
        seeds: default number of seeds.
        datasets: stand-ins, from the paper's data set to the one that is used instead.
        leave_out: pairs (``model/dataset``) that are not trained in this profile.
        notes: what is said below the table in this profile instead of the table's notes; of ``smoke`` alone.
    """

    seeds: int = pydantic.Field(default=1, ge=1, le=MAX_SEEDS)
    datasets: dict[str, str] = {}
    leave_out: tuple[str, ...] = pydantic.Field(default=(), strict=False)
    notes: tuple[str, ...] = pydantic.Field(default=(), strict=False)


class Pair(Strict):
    """A model and a data set: registry names and the names in the published rows.

    Attributes:
        setting: how the pair is trained; see :mod:`fractrain.engine.recipes`.
    """

    model: str
    dataset: str
    model_label: str
    dataset_label: str
    setting: Setting = "standard"

    @property
    def key(self) -> str:
        """``model/dataset``."""
        return f"{self.model}/{self.dataset}"


class PublishedKey(Strict):
    """Which published rows belong to a row: method and precision as the source spells them.

    Attributes:
        method, precision: as in the published rows.
        table, model, dataset: where they are not those of the table and of the pair, for example for a claim in an
            abstract that names no model.
    """

    method: str
    precision: str
    table: str = ""
    model: str = ""
    dataset: str = ""


class RowSpec(Strict):
    """One row of every pair: a method with its settings, and the published rows it is compared with.

    Attributes:
        published_elsewhere: further keys for pairs of which ``published`` has nothing, for example from another paper's
            table; the first that has anything counts, alone.
        preset: ``paper``: start from the settings its paper gives for the pair
            (:mod:`fractrain.methods.presets`); ``settings`` come on top.
        models: registry names of the models it is shown for; empty: all.
        against: key of the row that the table's relative columns set this one against; empty: none.
        series, tag: in a figure: key of the series the row's point belongs to, and the short text beside the point.
    """

    key: str
    label: str
    method: str
    precision: str
    settings: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    published: PublishedKey | None = None
    published_elsewhere: tuple[PublishedKey, ...] = pydantic.Field(default=(), strict=False)
    profiles: dict[Named, Override] = {}
    preset: Literal["", "paper"] = ""
    models: tuple[str, ...] = pydantic.Field(default=(), strict=False)
    against: str = ""
    series: str = ""
    tag: str = ""


class Series(Strict):
    """One series of a figure: ``published`` is the method as the published rows spell it."""

    key: str
    label: str
    published: str = ""


class FigureSpec(Strict):
    """How a figure is drawn: accuracy against effective MACs, one panel per pair.

    Attributes:
        tables: published tables whose points are drawn, every precision of every series.
        x_scale: of the axis of MACs.
        tags: what the short texts beside the points mean.
    """

    tables: tuple[str, ...] = pydantic.Field(min_length=1, strict=False)
    series: tuple[Series, ...] = pydantic.Field(min_length=1, strict=False)
    across: int = pydantic.Field(default=2, ge=1, le=4)
    x_scale: Literal["linear", "log"] = "linear"
    tags: str = ""


class Improvement(Strict):
    """Improvement rows: one row of the table against a list of others.

    Attributes:
        published: names the printed ones.
        tolerance: half the width of the zone around a published saving, in percentage points. Published savings are of
            single runs, and @best depends on when their best accuracy happened to come.
    """

    subject: str
    baselines: tuple[str, ...] = pydantic.Field(min_length=1, strict=False)
    published: str = ""
    tolerance: float = pydantic.Field(default=2.0, ge=0)


class RunRequest(Strict):
    """Arguments of one run apart from the seed, with the overrides of the profile applied."""

    method: str
    model: str
    dataset: str
    profile: Profile
    settings: dict[str, Any]
    recipe: dict[str, Any]
    setting: Setting = "standard"


class TableSpec(Strict):
    """A whole table, or the table behind a figure.

    Attributes:
        columns: columns of numbers to show; none: those of the paper's comparison tables.
        parts: 2: accuracy and cost apart; 1: both in one table.
        figure: how it is drawn; None for a plain table.
        errors: what is measured of number formats, instead of pairs and rows that are trained.
        split_against: key of the row against which the savings of all others are shown split into their factors; empty:
            only those of improvement rows and of rows with ``against``.
        arrays: hardware models that claims are set beside; None: no such section.
        costs: how the cost of a step is drawn, of the first pair; None: it is not.
    """

    name: str
    version: int = pydantic.Field(ge=1)
    title: str
    caption: str
    source: str
    published_table: str
    hardware: str = ""
    verdict: VerdictRule = VerdictRule()
    profiles: dict[Named, ProfileSpec] = {}
    pairs: tuple[Pair, ...] = pydantic.Field(default=(), strict=False)
    rows: tuple[RowSpec, ...] = pydantic.Field(default=(), strict=False)
    errors: FormatErrors | None = None
    improvement: Improvement | None = None
    split_against: str = ""
    arrays: Arrays | None = None
    costs: CostDrawing | None = None
    relative: tuple[Relative, ...] = pydantic.Field(default=(), strict=False)
    columns: tuple[ColumnKey, ...] = pydantic.Field(default=(), strict=False)
    parts: Literal[1, 2] = 2
    figure: FigureSpec | None = None
    notes: tuple[str, ...] = pydantic.Field(default=(), strict=False)

    @pydantic.model_validator(mode="after")
    def _names_fit(self) -> TableSpec:
        if (self.errors is None) != bool(self.pairs and self.rows) or (self.errors and (self.pairs or self.rows)):
            raise ValueError("give pairs and rows, or errors")
        keys = [row.key for row in self.rows]
        if len(set(keys)) != len(keys):
            raise ValueError(f"rows: two rows have the same key in {keys}")
        wanted = [self.improvement.subject, *self.improvement.baselines] if self.improvement else []
        named = [("improvement", key) for key in wanted]
        named += [("split_against", self.split_against)] if self.split_against else []
        named += [(f"rows: {row.key}: against", row.against) for row in self.rows if row.against]
        drawn = (*self.costs.bars, *self.costs.along) if self.costs else ()
        named += [("costs", key) for key in drawn]
        for where, key in named:
            if key not in keys:
                raise ValueError(f"{where}: no row has the key {key!r}{did_you_mean(key, keys)}")
        series = [s.key for s in self.figure.series] if self.figure else []
        for row in self.rows:
            if row.series and row.series not in series:
                raise ValueError(f"rows: {row.key}: no series {row.series!r}{did_you_mean(row.series, series)}")
        pairs = [(p.model, p.dataset, p.setting) for p in self.pairs]
        if len(set(pairs)) != len(pairs):
            raise ValueError(f"pairs: a model/data pair is listed twice in {pairs}")
        for profile, change in self.profiles.items():
            for name in change.datasets:
                if name not in {p.dataset for p in self.pairs}:
                    raise ValueError(f"profiles.{profile}.datasets: no pair uses {name!r}")
            for name in change.leave_out:
                if name not in {p.key for p in self.pairs}:
                    raise ValueError(f"profiles.{profile}.leave_out: no pair is {name!r}")
        for row in self.rows:
            if strange := sorted({*row.models} - {p.model for p in self.pairs}):
                raise ValueError(f"rows: {row.key}: models: no pair uses {strange[0]!r}")
        return self

    @property
    def is_drawn(self) -> bool:
        """Whether it is a figure: a table that is also drawn."""
        return self.figure is not None or self.costs is not None

    def row(self, key: str) -> RowSpec:
        """The row with this key."""
        return next(row for row in self.rows if row.key == key)

    def rows_of(self, pair: Pair) -> list[RowSpec]:
        """The rows that are shown for a pair."""
        return [row for row in self.rows if not row.models or pair.model in row.models]

    def left_out(self, pair: Pair, profile: Profile) -> bool:
        """Whether a profile does not train a pair."""
        return pair.key in self._profile(profile).leave_out

    def dataset(self, pair: Pair, profile: Profile) -> str:
        """Registry name of the data set a profile trains this pair on."""
        return self._profile(profile).datasets.get(pair.dataset, pair.dataset)

    def request(self, pair: Pair, row: RowSpec, profile: Profile) -> RunRequest:
        """The run of one row and pair; later ones win: preset, row, profile, row's own profile."""
        preset = paper_settings(row.method, pair.model, pair.dataset) if row.preset else {}
        own = row.profiles.get(_named(profile), Override())
        changes = (Override(settings=preset), row, self._profile(profile), own)
        return RunRequest(
            method=row.method, model=pair.model, dataset=self.dataset(pair, profile), profile=profile,
            setting=pair.setting, settings={k: v for change in changes for k, v in change.settings.items()},
            recipe={k: v for change in changes for k, v in change.recipe.items()},
        )  # fmt: skip

    def seeds(self, profile: Profile, seeds: int | None = None) -> tuple[int, ...]:
        """Seeds 0, 1, ...: so many, or the profile's number; a longer list extends a shorter one."""
        return tuple(range(self._profile(profile).seeds if seeds is None else seeds))

    def _profile(self, profile: Profile) -> ProfileSpec:
        return self.profiles.get(_named(profile), ProfileSpec())


def _named(profile: Profile) -> Named:
    """Whose section of a specification holds for a profile: a length without a name is the paper's protocol."""
    return profile if profile in ("smoke", "short") else "paper"  # type: ignore[return-value]


def table_folders(package: Path | None = None) -> list[Path]:
    """Folders that hold tables and figures."""
    return benchmark_folders("tables", "figures", package=package)


def benchmark_folders(*names: str, package: Path | None = None) -> list[Path]:
    """Folders of specifications: inside the installed package, else beside it in a source tree.

    Args:
        names: which folders.
        package: folder of the ``fractrain`` package; None means the one this module was imported from.
    """
    package = package or Path(__file__).resolve().parent.parent
    for root in (package / "benchmarks", package.parent / "benchmarks"):
        if (root / "tables").is_dir():  # in a wheel the outer one would be a stranger's
            return [root / name for name in names if (root / name).is_dir()]
    return []


def table_names(folders: list[Path] | None = None) -> list[str]:
    """Names of the tables and figures that have a specification."""
    return sorted({file.stem for folder in _folders(folders) for file in folder.glob("*.toml")})


def load_spec(name: str, folders: list[Path] | None = None) -> TableSpec:
    """Read and check one table's specification.

    Args:
        name: a table's name, or the path of a TOML file of your own (ending in ``.toml``).
        folders: where to look; default :func:`table_folders`.

    Raises:
        ConfigError: no such table, or its file is not valid (file and key are named).
    """
    if name.endswith(".toml"):
        return read_spec(Path(name))
    for folder in _folders(folders):
        if (file := folder / f"{name}.toml").is_file():
            return read_spec(file)
    known = table_names(folders)
    raise ConfigError(f"unknown table {name!r}{did_you_mean(name, known)}; known: {', '.join(known) or 'none'}")


def read_spec(file: Path) -> TableSpec:
    """Read one table's TOML file.

    Raises:
        ConfigError: as :func:`read_closed`, or the file has another name than the table.
    """
    spec = read_closed(file, TableSpec)
    if spec.name != file.stem:
        raise ConfigError(f"{file}: name = {spec.name!r}, but the file is called {file.stem!r}; make them equal")
    return spec


def read_closed(file: Path, kind: type[Closed]) -> Closed:
    """Read one TOML file as a closed specification.

    Raises:
        ConfigError: unreadable, not TOML, or a key is unknown, missing or of a wrong type.
    """
    try:
        with file.open("rb") as stream:
            content = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: brackets are nested too deep") from error
    try:
        return kind.model_validate(content)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{file}: {_first_fault(error)}") from error


_OWNERS: dict[str, type[Strict]] = {
    "": TableSpec, "pairs": Pair, "rows": RowSpec, "rows.published": PublishedKey,
    "rows.published_elsewhere": PublishedKey, "rows.profiles": Override, "profiles": ProfileSpec,
    "verdict": VerdictRule, "improvement": Improvement, "relative": Relative, "relative.claim": PublishedClaim,
    "arrays": Arrays, "costs": CostDrawing, "figure": FigureSpec, "figure.series": Series,
}  # fmt: skip


def _first_fault(error: pydantic.ValidationError) -> str:
    faults = sorted(error.errors(), key=lambda f: f["type"] != "extra_forbidden")  # a misspelt key also misses
    fault = faults[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] != "extra_forbidden":
        return f"{where}: {fault['msg']}" if where else str(fault["msg"])
    path = [str(p) for p in fault["loc"][:-1] if not isinstance(p, int) and p not in PROFILES]
    owner = _OWNERS.get(".".join(path))
    hint = did_you_mean(str(fault["loc"][-1]), owner.model_fields) if owner else ""
    return f"unknown key {where}{hint}"


def _folders(folders: list[Path] | None) -> list[Path]:
    return table_folders() if folders is None else folders
