"""How good a quantized model is, and which part of it costs how much."""
