"""Looking at models: what could be quantized, and later what quantization costs where."""
