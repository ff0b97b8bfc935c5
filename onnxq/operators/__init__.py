"""What an operator is to quantization."""
