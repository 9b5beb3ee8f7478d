"""One thread per process, chosen before torch is loaded: tests are small, and waiting threads slow each other down."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "2" if variable == "NUMBA_NUM_THREADS" else "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# After the variables above: some plugins of hypothesis load numpy.
from hypothesis import settings  # noqa: E402

# The same examples every time, so that a red run means a change; other examples: FRACTRAIN_TEST_EXAMPLES=random
settings.register_profile("same", derandomize=True)
settings.load_profile("default" if os.environ.get("FRACTRAIN_TEST_EXAMPLES") == "random" else "same")
