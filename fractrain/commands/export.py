"""``fractrain export``: a run's trained weights in a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fractrain.commands.common import choice_option, options, results_option, stdout_to_stderr

if TYPE_CHECKING:
    from fractrain.methods.export import FileFormat

FORMATS = ("torch", "safetensors", "onnx-qdq")


@click.command("export", short_help="Write a run's weights for use without fractrain.")
@options(
    click.argument("run_id", metavar="RUN"),
    choice_option("--format", "form", of=FORMATS, default="torch"),
    click.option("--out", type=click.Path(path_type=Path), help="The file.  [default: RUN.pt, .safetensors or .onnx]"),
    click.option("--force", is_flag=True, help="Replace a file that is there."),
    results_option,
)
def export_command(run_id: str, form: FileFormat, out: Path | None, force: bool, results: Path) -> None:
    """Write the trained weights of RUN (or the run that begins so) under the names that the plain model has.

    With them go the precision card, every layer's formats and widths, and the measured ranges of the activations, as a
    JSON text named `fractrain`. Plain PyTorch reads the file: `torch.load(FILE, weights_only=True)["weights"]`. With
    `onnx-qdq` the file is the network as evaluation computes it, with QuantizeLinear and DequantizeLinear nodes.
    """
    from fractrain.engine.restored import export
    from fractrain.engine.store import RunStore
    from fractrain.methods.export import SUFFIXES

    record = RunStore(results).find(run_id)
    with stdout_to_stderr():
        file = export(record, out or Path(f"{record.run_id}{SUFFIXES[form]}"), form, force)
    click.echo(file)
