"""Table specifications: which runs a paper's table consists of, read from ``benchmarks/tables/*.toml``.

A specification lists model/data pairs, rows (one method each) and, for each profile, what differs (stand-in data,
settings, recipe, number of seeds). It is closed: an unknown key is an error that names the file and the key.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import pydantic

from fractrain.errors import ConfigError, did_you_mean
from fractrain.report.verdict import VerdictRule

Profile = Literal["smoke", "short", "paper"]
PROFILES: tuple[Profile, ...] = ("smoke", "short", "paper")


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class Override(_Strict):
    """What one profile changes in one row: settings of the method and keys of the training recipe."""

    settings: dict[str, Any] = {}
    recipe: dict[str, Any] = {}


class ProfileSpec(Override):
    """What one profile changes in the whole table.

    Attributes:
        seeds: default number of seeds.
        datasets: stand-ins, from the paper's data set to the one that is used instead.
    """

    seeds: int = pydantic.Field(default=1, ge=1)
    datasets: dict[str, str] = {}


class Pair(_Strict):
    """A model and a data set: registry names and the names in the published rows."""

    model: str
    dataset: str
    model_label: str
    dataset_label: str


class PublishedKey(_Strict):
    """Which published rows belong to a row: method and precision as the source spells them."""

    method: str
    precision: str


class RowSpec(_Strict):
    """One row of every pair: a method with its settings, and the published rows it is compared with."""

    key: str
    label: str
    method: str
    precision: str
    settings: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    published: PublishedKey | None = None
    profiles: dict[Profile, Override] = {}


class Improvement(_Strict):
    """Improvement rows: one row of the table against a list of others; ``published`` names the printed ones."""

    subject: str
    baselines: tuple[str, ...] = pydantic.Field(min_length=1, strict=False)
    published: str = ""


class RuleSpec(_Strict):
    """The numbers of the verdict, see :class:`fractrain.report.verdict.VerdictRule`."""

    min_seeds: int = pydantic.Field(default=3, ge=2)
    tolerance: float = pydantic.Field(default=0.2, ge=0)
    max_half_width: float = pydantic.Field(default=1.0, gt=0)

    def rule(self) -> VerdictRule:
        """The rule as the plain value that :func:`fractrain.report.verdict.judge` takes."""
        return VerdictRule(self.min_seeds, self.tolerance, self.max_half_width)


class RunRequest(_Strict):
    """Arguments of one run apart from the seed, with the overrides of the profile applied."""

    method: str
    model: str
    dataset: str
    profile: Profile
    settings: dict[str, Any]
    recipe: dict[str, Any]


class TableSpec(_Strict):
    """A whole table."""

    name: str
    version: int = pydantic.Field(ge=1)
    title: str
    caption: str
    source: str
    published_table: str
    hardware: str = ""
    verdict: RuleSpec = RuleSpec()
    profiles: dict[Profile, ProfileSpec] = {}
    pairs: tuple[Pair, ...] = pydantic.Field(min_length=1, strict=False)
    rows: tuple[RowSpec, ...] = pydantic.Field(min_length=1, strict=False)
    improvement: Improvement | None = None
    notes: tuple[str, ...] = pydantic.Field(default=(), strict=False)

    @pydantic.model_validator(mode="after")
    def _names_fit(self) -> TableSpec:
        keys = [row.key for row in self.rows]
        if len(set(keys)) != len(keys):
            raise ValueError(f"rows: two rows have the same key in {keys}")
        wanted = [self.improvement.subject, *self.improvement.baselines] if self.improvement else []
        for key in wanted:
            if key not in keys:
                raise ValueError(f"improvement: no row has the key {key!r}{did_you_mean(key, keys)}")
        pairs = [(p.model, p.dataset) for p in self.pairs]
        if len(set(pairs)) != len(pairs):
            raise ValueError(f"pairs: a model/data pair is listed twice in {pairs}")
        for profile, change in self.profiles.items():
            for name in change.datasets:
                if name not in {p.dataset for p in self.pairs}:
                    raise ValueError(f"profiles.{profile}.datasets: no pair uses {name!r}")
        return self

    def row(self, key: str) -> RowSpec:
        """The row with this key."""
        return next(row for row in self.rows if row.key == key)

    def dataset(self, pair: Pair, profile: Profile) -> str:
        """Registry name of the data set a profile trains this pair on."""
        return self._profile(profile).datasets.get(pair.dataset, pair.dataset)

    def request(self, pair: Pair, row: RowSpec, profile: Profile) -> RunRequest:
        """The run of one row and pair; later ones win: row, profile, row's own profile."""
        changes = (row, self._profile(profile), row.profiles.get(profile, Override()))
        return RunRequest(
            method=row.method,
            model=pair.model,
            dataset=self.dataset(pair, profile),
            profile=profile,
            settings={k: v for change in changes for k, v in change.settings.items()},
            recipe={k: v for change in changes for k, v in change.recipe.items()},
        )

    def seeds(self, profile: Profile, seeds: int | None = None) -> tuple[int, ...]:
        """Seeds 0, 1, ...: so many, or the profile's number; a longer list extends a shorter one."""
        return tuple(range(self._profile(profile).seeds if seeds is None else seeds))

    def _profile(self, profile: Profile) -> ProfileSpec:
        return self.profiles.get(profile, ProfileSpec())


def check_profile(name: str) -> Profile:
    """Return the name as a profile.

    Raises:
        ConfigError: there is no such profile.
    """
    for profile in PROFILES:
        if name == profile:
            return profile
    raise ConfigError(f"unknown profile {name!r}{did_you_mean(name, PROFILES)}; known: {', '.join(PROFILES)}")


def table_folders(package: Path | None = None) -> list[Path]:
    """Folders that hold table files: inside the installed package, else beside it in a source tree.

    Args:
        package: folder of the ``fractrain`` package; None means the one this module was imported from.
    """
    package = package or Path(__file__).resolve().parent.parent
    both = [package / "benchmarks" / "tables", package.parent / "benchmarks" / "tables"]
    found = [folder for folder in both if folder.is_dir()]
    return found[:1]  # in a wheel the outer one would be a stranger's


def table_names(folders: list[Path] | None = None) -> list[str]:
    """Names of the tables that have a specification."""
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
    """Read one TOML file.

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
    try:
        spec = TableSpec.model_validate(content)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{file}: {_first_fault(error)}") from error
    if spec.name != file.stem:
        raise ConfigError(f"{file}: name = {spec.name!r}, but the file is called {file.stem!r}; make them equal")
    return spec


_OWNERS: dict[str, type[_Strict]] = {
    "": TableSpec,
    "pairs": Pair,
    "rows": RowSpec,
    "rows.published": PublishedKey,
    "rows.profiles": Override,
    "profiles": ProfileSpec,
    "verdict": RuleSpec,
    "improvement": Improvement,
}


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
