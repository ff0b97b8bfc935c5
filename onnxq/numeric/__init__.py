"""Quantization arithmetic on numpy arrays; nothing here knows of graphs."""
