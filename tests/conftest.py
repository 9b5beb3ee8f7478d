"""One thread per process, chosen before torch is loaded: tests are small, and waiting threads slow each other down."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "2" if variable == "NUMBA_NUM_THREADS" else "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
