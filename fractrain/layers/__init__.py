"""The quantized layers, and the layers between them. Knows nothing of methods or the engine."""
