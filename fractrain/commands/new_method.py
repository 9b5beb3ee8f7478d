"""``fractrain new-method``: a working skeleton of a method, and its test."""

from __future__ import annotations

import keyword
import os
from pathlib import Path

import click

from fractrain.commands.common import folder_option, options
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
