"""The white paper's Figure 8, one file a step, in the order in which `pipeline` lists them:

    normalize               one form for what exporters write in many
    rewrite_einsum          Einsum of activations and a constant is a MatMul
    fuse_decomposed         HardSwish and others that exporters decomposed                    (2.3.2)
    fold_batchnorm          BatchNorm, Mul and Add go into the linear layer beside them       (10 to 12)
    remove_dead_channels    channels that carry a constant go into the next bias
    equalize_layers         cross-layer equalization                                          (20 to 22)
    absorb_bias             high biases go into the next layer                                (23, 24)
    smoothquant             outliers behind LayerNorm go into the weights that read them      (arXiv:2211.10438)
    add_quantizers          where the target computes in integers                             (2.3.2, 2.3.3)
    add_table_quantizers    of tables that Gather looks up, one scale a row
    apply_overrides         what the user wants otherwise
    apply_encodings         grids that an encodings file gives
    set_weight_ranges       weight scales from the weights                                    (3.1)
    refine_weight_ranges    the same, weighted by output sensitivity
    set_activation_ranges   activation scales from calibration data                           (3.1)
    set_data_free_ranges    the same without data, from BatchNorm                             (18, 19)
    quantize_dynamically    activations whose ranges are found at run time
    fallback                16 bits, a range found at run time, or float where a grid costs too much  (4.2)
    leave_incomplete        what lost a quantizer stays in float whole, where the target wants it so
    choose_storage          4-bit weights in 4 or in 8 bits
    correct_bias            the mean error of rounded weights goes into the bias              (25 to 28)
    correct_bias_empirically    the same layer after layer in the quantized network           (27, 28)
    round_weights           rounding, scale and bias optimised layer after layer              (33 to 35)
    make_exceptions         wider formats for the few tensors that carry the loss, as the last resort (4.2)
    set_bias_scales         s_x s_w fits 32-bit biases
    fuse_activation         Relu and Clip that requantization performs anyway fall away       (2.3.2)
    lower_to_qdq            quantizers become QuantizeLinear and DequantizeLinear
    tabulate_hard_swish     HardSwish is a look-up and a product, where the target wants it so

Passes never import each other; they communicate through `Model`.
"""
