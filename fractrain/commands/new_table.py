"""``fractrain new-table``: a table of one's own to start from."""

from __future__ import annotations

import re
from pathlib import Path

import click

from fractrain.commands.common import folder_option, options, plugin_option
from fractrain.commands.new_method import write_new
from fractrain.util.errors import ConfigError

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
