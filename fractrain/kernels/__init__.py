"""Fast kernels behind :mod:`fractrain.numerics` and :mod:`fractrain.layers`, with the same bits."""
