"""Fuzz trial: odd command lines and configurations.

    python benchmarks/faults/inputs.py [--cases 2000] [--seed 0]

A case is one command: of every verb, with options left out, repeated, misspelt, or given values from a list of what
people and programs get wrong; settings of every method and recipe keys with values beyond sense; table files in which
something was changed; plugin files that are none. It must end with exit code 0, 1, 2 or 130 and without a traceback,
with one line where it says that the input is wrong, within seconds and within 12 GiB of address space. Commands that
are right by chance and would take long are interrupted: that must end them, too.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trial
from trial import ROOT, FaultTrial, Found, here, run_args

LIMIT_S: Final = 20.0
ODD: Final = (
    "", " ", "-1", "0", "1", "-0", "1e999", "-inf", "nan", "9" * 30, str(2**63), str(2**31), "0x10", "1_000", "\u0663",
    "1/0", "1/3/2", "1/", "/", "..", "../..", "/nonexistent/x", "~", "a" * 5000, "\u00e9" * 300, "\U0001f600", "\u202e",
    "a\nb", "a\tb", "\ud800", "[", "[" * 1000, "{}", "null", "None", "true", "*", "%s", "{x}", "{0}", "${HOME}", "<b>x",
    "=x", "x=", "=", "x=y", "--", "-", "--json", "-h", ":", "::", ",", "a,b", "fp32,fp32", "FP32", "fp-32", "fp 32",
    "resnet20", "RESNET38", "resnet38 ", "torchvision:", "torchvision:nope", "timm:", "timm:nope", "x.py:f", "folder:",
    "folder:/nonexistent", "hf:owner/name@main", "hf:owner/name", "hf:", "cifar11", "digits?size=0", "table99", "table",
    "all", "all,all", "tablle2", "smoke", "paper", "cuda:99", "cuda:-1", "cudaa", "xpu", "auto", "2.0", "1e3", "1.",
)  # fmt: skip
NUMBERS: Final = (
    "0", "-1", "1", "2", "3", "0.5", "-0.0", "1e-300", "1e300", "1e999", "nan", "-inf", str(2**31), str(2**63),
    str(-(2**63)), "9" * 400, "true", "none", "null", "", "[]", "[1", "1,2", ",", "1,,2", "x", "[" * 1000, "{'a':1}",
    "0.1.2", "1e", "1 2", "\u0663", "+1", "1_0", "0x1", "4,4", "8", "16", "32", "64",
)  # fmt: skip
GOOD: Final = {
    "--method": ("fp32", "static8", "fractrain", "sbm", "dfq", "mx"), "--model": ("resnet8", "resnet38", "resnet18"),
    "--dataset": ("few_digits", "digits", "cifar10", "wikitext2"), "--profile": ("smoke", "short", "paper"),
    "--seed": ("0", "3"), "--format": ("md", "csv", "tex", "html", "json"), "--device": ("cpu",), "--seeds": ("1", "3"),
    "--setting": ("standard", "adaptation"), "--length": ("1/8", "1"), "--hardware": ("bitfusion", "ideal"),
}  # fmt: skip
ARGUMENTS: Final = ("table2", "table1", "overview", "figure-pfq", "scaling", "fp32", "digits", "methods", "models", "x")
PLUGINS: Final = (
    "", "x = (", "raise RuntimeError('no')", "raise SystemExit(3)", "import nothing_of_that_name", "x = 1", "\x00",
    "class A: pass", "raise KeyboardInterrupt", "print('hello')", "\ufeffx = 1", "1/0",
)  # fmt: skip
WEIGHTS: Final = {
    "run": 20, "config show": 16, "table": 8, "plan": 6, "reproduce": 6, "list": 6, "show": 4, "diff": 3, "compare": 3,
    "cost": 4, "verify-runs": 2, "publish": 3, "report": 1, "claims": 1, "evidence verify": 2, "evidence add": 1,
    "evidence write": 1, "data status": 3, "data verify": 2, "data fetch": 1, "check-method": 3, "check-hardware": 2,
    "new-method": 3, "bench": 2, "doctor": 0.3,
}  # fmt: skip
HARMLESS: Final = {
    "run": ["--dry-run"], "reproduce": ["--dry-run"], "plan": ["--no-times"], "publish": ["--mode", "offline"],
    "bench": ["--path", "no_such_path"], "check-method": ["--check", "no_such_check"],
}  # fmt: skip


class Inputs:
    """The trial."""

    def setup(self, folder: Path) -> None:
        """Make a finished run, which names can hit, and look up verbs and settings."""
        import click

        from fractrain.cli import main
        from fractrain.engine.recipes import Recipe
        from fractrain.methods import registry

        trial.warm(("fp32",), folder / "warm")
        self._store = folder / "store"
        ended = here(run_args("fp32", self._store))
        assert ended.code == 0, ended.err
        self._verbs: dict[str, list[click.Parameter]] = {}
        context = click.Context(main)
        for name in main.list_commands(context):
            command = main.get_command(context, name)
            assert command is not None
            inner = command.commands.items() if isinstance(command, click.Group) else [("", command)]
            self._verbs |= {f"{name} {verb}".strip(): one.params for verb, one in inner}
        assert set(WEIGHTS) <= set(self._verbs), set(WEIGHTS) - set(self._verbs)
        if untried := sorted(set(self._verbs) - set(WEIGHTS)):
            print(f"verbs that are not tried: {', '.join(untried)}", file=sys.stderr)
        self._settings = {name: list(registry.get(name).Settings.model_fields) for name in registry.names()}
        self._recipe = list(Recipe.model_fields)
        self._tables = sorted((ROOT / "benchmarks").glob("[tf]*s/*.toml"))

    def case(self, rng: random.Random, number: int, folder: Path) -> Found:
        """Give one odd command."""
        kind = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
        args = KINDS[kind][1](self, rng, folder)
        ended = here(args, LIMIT_S)
        fault = ended.fault()
        shown = " ".join(repr(one) if not one.isascii() or " " in one or not one else one for one in args)
        return {"fault": f"{shown[:300]}: {fault}" if fault else "", "kind": kind, "outcome": f"exit code {ended.code}"}

    def command_line(self, rng: random.Random, folder: Path) -> list[str]:
        """A verb with any options."""
        verb = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        args: list[str] = []
        for param in self._verbs[verb]:
            if param.param_type_name == "argument":
                args += [self._value(rng, "argument") for _ in range(rng.choice((0, 1, 1, 1, 1, 2)))]
            elif param.name not in ("debug",) and rng.random() < (0.8 if param.required else 0.2):
                args += self._option(rng, param)
        args += self._places(verb, folder)
        if rng.random() < 0.15:
            _spoil(rng, args)
        return [*verb.split(), *args, *HARMLESS.get(verb, ())]

    def _option(self, rng: random.Random, param: Any) -> list[str]:
        name = param.opts[-1]
        if name in ("--results", "--out", "--dir", "--evidence", "--track", "--download", "--minutes", "--losses"):
            return []
        if getattr(param, "is_flag", False):
            return [name]
        if name == "--set":
            return ["--set", self._set(rng, rng.choice(list(self._settings)))]
        return [name, self._value(rng, name)]

    def _value(self, rng: random.Random, name: str) -> str:
        good = GOOD.get(name, ARGUMENTS)
        return rng.choice(good) if rng.random() < 0.6 else rng.choice(ODD)

    def _places(self, verb: str, folder: Path) -> list[str]:
        """Where it may write."""
        names = {param.opts[-1] for param in self._verbs[verb] if param.param_type_name == "option"}
        places = {"--results": self._store, "--out": folder / "out", "--dir": folder, "--evidence": folder / "evidence"}
        return [text for name, path in places.items() if name in names for text in (name, str(path))]

    def _set(self, rng: random.Random, method: str) -> str:
        keys = [*self._settings[method], *(f"recipe.{key}" for key in self._recipe), "lr", "recipe.", "", "source.lr"]
        return f"{rng.choice(keys)}={rng.choice(NUMBERS)}"

    def settings(self, rng: random.Random, folder: Path) -> list[str]:
        """A method with settings beyond sense; one in eight is trained for a step."""
        method = rng.choice(list(self._settings))
        sets = [text for _ in range(rng.randint(1, 3)) for text in ("--set", self._set(rng, method))]
        short = ["--set", "recipe.iterations=1", "--set", "recipe.eval_every=1", "--set", "recipe.batch_size=24"]
        which = ["--method", method, "--model", "resnet8", "--dataset", "few_digits"]
        if rng.random() < 0.125:
            return ["run", *which, "--device", "cpu", "--results", str(folder), *short, *sets]
        return ["config", "show", *which, "--results", str(folder), *sets]

    def table(self, rng: random.Random, folder: Path) -> list[str]:
        """A table file in which something is changed."""
        text = rng.choice(self._tables).read_text()
        for _ in range(rng.choice((1, 1, 2, 5))):
            text = _changed(rng, text)
        path = folder / "odd.toml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        verb = rng.choice((["table"], ["plan", "--no-times"], ["reproduce", "--dry-run"], ["config", "show"]))
        return [*verb, str(path), "--results", str(self._store)]

    def plugin(self, rng: random.Random, folder: Path) -> list[str]:
        """A plugin file that is none."""
        path = folder / rng.choice(("odd.py", "odd", "odd name.py", "json.py"))
        path.write_text(rng.choice(PLUGINS), encoding="utf-8")
        verb = rng.choice((["list", "methods"], ["list", "models"], ["check-method", str(path)], ["table", "table2"]))
        return [*verb, "--plugin", str(path)] if verb[0] != "check-method" else [*verb, "--check", "no_such_check"]


def _spoil(rng: random.Random, args: list[str]) -> None:
    """What happens to command lines: a word is lost, comes twice, or changes its place."""
    if not args:
        return
    at = rng.randrange(len(args))
    match rng.randrange(4):
        case 0:
            del args[at]
        case 1:
            args.insert(at, args[at])
        case 2:
            args[at] = args[at][: rng.randint(0, len(args[at]))]
        case _:
            args.insert(0, args.pop(at))


def _changed(rng: random.Random, text: str) -> str:
    lines = text.splitlines() or [""]  # an earlier change may have left nothing
    at = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, rng.choice(lines))
        case 2:
            values = list(re.finditer(r'"[^"]*"|-?\d[\d.e]*|true|false', text))
            if not values:
                return text + '"'
            place = rng.choice(values)
            odd = rng.choice((*NUMBERS, '""', '"x"', '"' + "a" * 3000 + '"', "{ x = 1 }", '["x"]', "1979-05-27"))
            return text[: place.start()] + odd + text[place.end() :]
        case 3:
            return text[: rng.randrange(len(text))]
        case _:
            key = re.sub(r"^(\w+)(\s*=)", r"x\1\2", lines[at])
            lines[at] = key
    return "\n".join(lines)


Make = Callable[[Inputs, random.Random, Path], list[str]]
KINDS: Final[dict[str, tuple[int, Make]]] = {
    "command lines": (9, Inputs.command_line), "settings": (7, Inputs.settings), "table files": (3, Inputs.table),
    "plugin files": (1, Inputs.plugin),
}  # fmt: skip
INPUTS = Inputs()
TRIAL = FaultTrial(
    name="inputs", title="Odd command lines and configurations: what they were, and how they ended.", cases=2000,
    unit="commands", case=INPUTS.case, setup=INPUTS.setup, together=100,
)  # fmt: skip

if __name__ == "__main__":
    trial.main(TRIAL, __doc__ or "")
