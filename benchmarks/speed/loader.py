"""Images per second of the loader on a folder, by number of worker processes, on this machine.

    python benchmarks/speed/loader.py [DIR] [--dataset imagenette] [--batch 64] [--seconds 3] [--workers 0,1,2]

DIR holds the data set's folder, as for ``fractrain run --data-dir``; without it, photo-sized noise is written to a
temporary folder. Each number of workers is measured for some seconds after the first batch arrived, on the CPU, without
training. Writes JSON to stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from fractrain.data import registry
from fractrain.data.folder_data import FolderData
from fractrain.plan.loading import photo_folder, reading_rate


def measure(data: FolderData, batch: int, workers: int, seconds: float) -> dict[str, Any]:
    """Read training batches for some seconds; return images per second and the time to the first batch."""
    rate, first = reading_rate(data.train_stream(batch, 0, "cpu", workers=workers), seconds)
    return {"workers": workers, "images_per_second": round(rate, 1), "first_batch_s": round(first, 2)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("dir", nargs="?", type=Path)
    parser.add_argument("--dataset", default="imagenette")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--workers", default=f"0,1,{os.cpu_count()}")
    args = parser.parse_args()
    counts = sorted({int(text) for text in args.workers.split(",")})
    photos = dataclasses.replace(registry.info("imagenette"), shape=(3, 224, 224))
    with tempfile.TemporaryDirectory() as scratch:
        found: Any = registry.load(args.dataset, args.dir) if args.dir else photo_folder(photos, Path(scratch))
        if not isinstance(found, FolderData):
            parser.error(f"{args.dataset} is no folder of images")
        rows = [measure(found, args.batch, workers, args.seconds) for workers in counts]
    print(
        json.dumps(
            {
                "benchmark": "loader",
                "dataset": args.dataset if args.dir else "made up, 500x375",
                "size": list(found.info.shape[1:]),
                "batch": args.batch,
                "cores": os.cpu_count(),
                "results": rows,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
