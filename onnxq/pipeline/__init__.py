"""Figure 8 of the white paper: from a float model to a verified, quantized one."""
