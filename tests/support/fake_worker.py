"""The worker with the fakes: what the executor's tests start as a process."""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from engine_fakes import FakeRegistries  # noqa: E402

from fractrain.execute.worker import main  # noqa: E402


class Registries(FakeRegistries):
    """Takes its process down, or takes long, when the settings say so; prints, as plugins do."""

    def method(self, name, settings):
        print("hello from a plugin")
        if settings["bits"] == 13:
            print("last words", file=sys.stderr, flush=True)
            os._exit(7)
        made = super().method(name, settings)
        if settings["bits"] == 14:
            import time

            on_step_end = made.on_step_end
            made.on_step_end = lambda *a: (time.sleep(0.05), on_step_end(*a))[1]
        return made


if __name__ == "__main__":
    sys.exit(main(Registries()))
