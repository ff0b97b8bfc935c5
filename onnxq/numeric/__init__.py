"""Quantization arithmetic on numpy arrays, without graphs.

quant                                grids, specs and parameters of quantization; quantize and dequantize
ranges  range_search                 range methods by name; the search for the best range
quantization_error  distribution     what a grid loses of a tensor's values
samples  histogram  logits           what range methods read, collected in fixed memory
channel_statistics  clipped_normal   mean and deviation of channels, measured or behind an activation
equalization                         scales of channels that are equally easy to quantize
metrics  distance                    SQNR, KL divergence, and what else compares two tensors
"""
