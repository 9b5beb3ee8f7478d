"""Speed and memory, measured: ``fractrain bench``.

Ratios to an eager FP32 step of the same model, paired and interleaved on this machine, never absolute claims:
:mod:`~fractrain.bench.catalog` says what is measured and what is aimed at, :mod:`~fractrain.bench.measure` how.
"""
