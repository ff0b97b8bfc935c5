"""The white paper's Figure 8, one file a step, in the order in which `pipeline.ptq` runs them:

    normalize               one form for what exporters write in many
    fold_batchnorm          BatchNorm, Mul and Add go into the linear layer beside them       (10 to 12)
    add_quantizers          where the target computes in integers                             (2.3.2, 2.3.3)
    set_weight_ranges       weight scales from the weights                                    (3.1)
    set_activation_ranges   activation scales from calibration data                           (3.1)
    set_bias_scales         s_x s_w fits 32-bit biases
    fuse_activation         Relu and Clip that requantization performs anyway fall away       (2.3.2)
    lower_to_qdq            quantizers become QuantizeLinear and DequantizeLinear

Passes never import each other; they communicate through `Model`.
"""
