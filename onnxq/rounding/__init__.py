"""How weights are rounded to integers (white paper, section 3.4): (objective, grid) -> integers.

choice             scale, rounding and bias of one weight; nearest where nothing is better
methods            the methods by name; nearest
gptq  coordinate_descent  adaround    one method each
objective          the error of a layer's output as a quadratic form (Gram matrices)
layer_statistics   those matrices, collected from samples
grid  scale_search  bias_scale    where weights may lie, and which scales they get
"""
