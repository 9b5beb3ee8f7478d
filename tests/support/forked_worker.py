"""A server whose workers do what their first line says: only for tests."""

import os
import sys
import time

from fractrain.execute.fork_server import main


def worker() -> int:
    for line in sys.stdin:
        order, _, value = line.strip().partition(" ")
        if order == "exit":
            return int(value)
        if order == "abort":
            os.kill(os.getpid(), int(value))
        if order == "tell":
            print(os.environ.get(value), os.getsid(0) == os.getpid(), flush=True)
        if order == "complain":
            print(value, file=sys.stderr, flush=True)
        if order == "sleep":
            time.sleep(float(value))
    return 5  # the end of its input


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], worker, preload=("no_such_module",)))
