"""``python -m fractrain ...``: the command line, for launchers such as ``torchrun -m fractrain run ...``."""

from fractrain.cli import main

if __name__ == "__main__":
    main()
