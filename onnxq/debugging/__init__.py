"""Figure 9 of the white paper: what to try, in order, where a quantized model is not good enough."""
