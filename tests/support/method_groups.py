"""Methods that tests treat alike."""

FLOAT_METHODS = ("fp32", "adam8bit", "bf16_sr")  # quantize no operand of a product
