"""``fractrain new-method`` and ``new-table``: a skeleton of a method with its test, and a table to start from."""

from __future__ import annotations

import keyword
import os
import re
from pathlib import Path

import click

from fractrain.commands.common import folder_option, options, plugin_option
from fractrain.util.errors import ConfigError

METHOD = '''"""{name}: what it does to A, W and E in FW, EB and GC. Source: paper, section; departures from it."""

from pydantic import Field
from torch import nn

from fractrain import Affine, Method, MethodContext, MethodSettings, Operand, PerAxis, Precision, convert


class {kind}Settings(MethodSettings):
    """Settings of {name}."""

    bits: int = Field(8, ge=2, le=16, description="forward bits (A and W)")
    grad_bits: int = Field(8, ge=2, le=16, description="error bits")


class {kind}(Method):
    """One line that says what is quantized how; it is shown everywhere."""

    name = "{name}"
    source = "authors, title, venue, section"
    Settings = {kind}Settings

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize all layers but the first and the last."""
        precision = Precision.of(
            a=Operand(self.settings.bits, Affine(), running=0.9),
            w=Operand(self.settings.bits, Affine(PerAxis(0))),
            e=Operand(self.settings.grad_bits, Affine(rounding="stochastic")),
        )
        return convert(model, precision, self.state, keep_first=True, keep_last=True)
'''

TEST = '''"""The contract of {name}; run with `pytest {file}`."""

from pathlib import Path

import pytest

from fractrain.testing import CHECKS, run_check

METHOD = Path(__file__).with_name("{name}.py")


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: str) -> None:
    run_check(METHOD, check, quick=True)
'''


def check_name(name: str) -> None:
    """Refuse a name that cannot be a method's.

    Raises:
        ConfigError: it is no Python identifier in lower case, a keyword, reserved, or taken.
    """
    from fractrain.methods.registry import MethodRegistry

    if not name.isascii() or not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise ConfigError(f"{name!r} cannot be a method's name: take lower-case letters, digits and _, like my_method")
    if name.startswith(("_", "test_")):
        raise ConfigError(f"{name!r} cannot be a method's name: it must not begin with _ or test_")
    known = MethodRegistry.discover().origins.get(name)
    if known is not None:
        raise ConfigError(f"there is a method {name!r} already ({known}): choose another name")


def class_name(name: str) -> str:
    """``my_method`` -> ``MyMethod``."""
    return "".join(part.capitalize() for part in name.split("_"))


def write_new(path: Path, text: str) -> None:
    """Write a file that must not exist yet: complete or not at all.

    Raises:
        ConfigError: it exists.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename, it never replaces
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already, nothing was written: choose another name or --dir") from error
    finally:
        temporary.unlink(missing_ok=True)


@click.command("new-method", short_help="Write the skeleton of a method and its test.")
@options(
    click.argument("name"),
    folder_option("--dir", "folder", default=".", show_default=False, help="Where to.  [default: this folder]"),
)  # fmt: skip
def new_method_command(name: str, folder: Path) -> None:
    """Write NAME.py, a working method to start from, and test_NAME.py, which checks it against the contract."""
    check_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    method, test = folder / f"{name}.py", folder / f"test_{name}.py"
    for path in (method, test):
        if path.exists():
            raise ConfigError(f"{path} exists already, nothing was written: choose another name or --dir")
    write_new(method, METHOD.format(name=name, kind=class_name(name)))
    write_new(test, TEST.format(name=name, file=test.name))
    click.echo(f"wrote {method} and {test}\n\nnext:")
    click.echo(f"  fractrain check-method {method}")
    click.echo(f"  fractrain run --plugin {method} --method {name} --model resnet38 --dataset digits")


# -- a table -----------------------------------------------------------------------------------------------------------


HEAD = """# A table of your own; docs/add-a-table.md says what each key means.
# Raise `version` when rows, settings or rules change.
name = "{name}"
version = 1
title = "{name}"
caption = "What the table shows, in a sentence or two."
source = "whose numbers stand beside ours; here nobody's"
published_table = ""            # of results/published; empty: none

[verdict]
min_seeds = 3                   # fewer can neither confirm nor contradict
tolerance = 0.5                 # percentage points

[profiles.smoke]
seeds = 1

[profiles.paper]
seeds = 3

[[relative]]                    # rows with `against` get a column: difference in points
quantity = "accuracy_best_test"
label = "Accuracy over {rival}"
short = "over {rival}"

[[relative]]                    # and one with the cost of the other row divided by its own
quantity = "macs_end"
label = "MACs {rival}/this"
short = "MACs {rival}/this"

[[pairs]]                       # every row is run for every pair
model = "{model}"
dataset = "{dataset}"
model_label = "{model}"         # as the published rows spell it
dataset_label = "{dataset}"
"""
ROW = """
[[rows]]
key = "{method}"
label = "{method}"
method = "{method}"
precision = "defaults"          # printed beside the label
settings = {{}}                   # of the method, where they are not its defaults
{more}"""


@click.command("new-table", short_help="Write a table of your own to start from.")
@options(
    click.argument("name"),
    click.option("--method", "methods", multiple=True, metavar="NAME", help="A row; may be repeated.  [default: dfq]"),
    click.option("--against", default="sbm", show_default=True, metavar="METHOD", help="The row they are set against."),
    click.option("--model", default="resnet38", show_default=True, metavar="NAME", help="See `fractrain list models`."),
    click.option("--dataset", default="digits", show_default=True, metavar="NAME", help="`fractrain list datasets`."),
    folder_option("--dir", "folder", default=".", show_default=False, help="Where to.  [default: this folder]"),
    plugin_option,
)  # fmt: skip
def new_table_command(
    name: str, methods: tuple[str, ...], against: str, model: str, dataset: str, folder: Path
) -> None:
    """Write NAME.toml, a table that `plan`, `reproduce` and `table` take as it is: methods against one of them."""
    from fractrain.engine.config import RunConfig
    from fractrain.report.spec import table_names

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ConfigError(f"{name!r} cannot be a table's name: take letters, digits, -, _ and . like my-table")
    if name in table_names():
        raise ConfigError(f"there is a table {name!r} already: choose another name")
    own = [method for method in dict.fromkeys(methods or ("dfq",)) if method != against]
    for method in (against, *own):
        RunConfig.create(method=method, model=model, dataset=dataset)
    text = HEAD.format(name=name, rival=against, model=model, dataset=dataset)
    text += ROW.format(method=against, more="")
    text += "".join(ROW.format(method=method, more=f'against = "{against}"\n') for method in own)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.toml"
    write_new(file, text)
    click.echo(f"wrote {file}\n\nnext:")
    click.echo(f"  fractrain plan {file}")
    click.echo(f"  fractrain reproduce {file}")
