"""Number formats, quantizers, and the two quantized layers. Knows nothing of methods or the engine."""
