"""What other tools call our options, so that a name from their manuals is answered with ours.

Of quantize_static and static_quantize_runner (ONNX Runtime), ModelOpt, Quark, AIMET, NNCF and OpenVINO, Intel Neural
Compressor, trtexec, QNN's and SNPE's converters, RKNN-Toolkit2.
"""

from __future__ import annotations

from collections.abc import Mapping

_SAME_VALUE = {
    "calibration": """calibration calibration_data calibration_dataset calibration_dataset_path calibration_data_path
        calib_data calib_dir calibration_dir dataset dataset_path dataloader calib_dataloader calibration_data_reader
        calibration_loader input_list images data_dir data_path input_dir data calib""",
    "samples": """num_samples calibration_size calib_size subset_size num_calib_samples n_samples sampling_sizes
        max_samples""",
    "mean": "mean_values means image_mean input_mean",
    "std": "std_values stds image_std input_std scale_values",
    "exclude": """nodes_to_exclude op_types_to_exclude ignored_scope exclude_nodes excluded_nodes disabled_layers
        exclude_ops skip skip_layers""",
    "include": "nodes_to_quantize op_types_to_quantize include_nodes op_types layers",
    "activation_range": """calibrate_method calibration_method calibration_algorithm quantized_algorithm act_algo
        act_quantizer quant_scheme""",
    "target": "target_device device target_platform platform backend ep soc hardware",
    "block_size": "group_size weight_block_size",
    "per_channel": "channel_wise use_per_channel_quantization perchannel per_axis",
    "freeze": "shapes input_shape input_shapes input_dim overwrite_input_shape opt_shapes",
    "from_encodings": "quantization_overrides load_encodings",
    "provider": "execution_provider execution_providers providers",
    "threads": "num_threads jobs workers num_workers",
    "batch_size": "batch batchsize bs",
    "rounding": "adaround rounding_method",
    "smoothquant": "smooth_quant smoothquant_alpha sq_alpha",
    "metric": "metrics eval_func eval_fn",
    "goal": "target_drop target_score accuracy_target max_drop tolerance",
    "symmetric_activations": "force_symmetric_activations activation_symmetric",
}

_OTHER_VALUE = {
    "int8 is the default, `preset` w8a8": "int8 best",
    "what stays in float stays in the model's own type; vendors' compilers make float16 of it": "fp16 bf16 half fp8",
    "widths are one option, `preset` w8a8, w8a16, w4a8 and so on, and `target` says which types the QDQ model has": """
        weight_type activation_type weights_dtype activations_dtype quantize_mode quant_mode quant_format dtype
        quantized_dtype param_bw default_param_bw default_output_bw default_activation_bw weights_bitwidth act_bitwidth
        weight_bits activation_bits w_bits a_bits bits num_bits quant_config precision do_quantization""",
    "biases have the 32 bits that every `target` has for them": "bias_bitwidth bias_bw",
    "the model is the first argument": """onnx model input input_model model_input input_model_path onnx_path
        input_network model_path weights""",
    "the result is the second argument, in Python `output`": """o output out output_model model_output
        output_path output_model_path save_path output_quantized_model_path save_engine saveengine export""",
    "each of these is an option of its own: docs/options.md lists them": "extra_options advanced_parameters",
    "`bias_correction` is analytic, empirical or off": "fast_bias_correction",
    "the model is brought into one form by itself": "optimize_model preprocess_model simplify",
    "`onnxq -v` logs each step, and in Python logging.getLogger('onnxq')": "log_level loglevel verbose_level",
    "an existing output is replaced anyway, once the new one is verified": "force overwrite y yes",
}

RENAMED: Mapping[str, str] = {name: ours for ours, names in _SAME_VALUE.items() for name in names.split()}
"""Their name, underscores for hyphens -> the option that takes the same kind of value; `calibration` is --calib."""

EXPLAINED: Mapping[str, str] = {name: text for text, names in _OTHER_VALUE.items() for name in names.split()}
"""Their name -> what to write instead, where ours takes other values."""


def key_of(name: str) -> str:
    """A name as the tables above spell it: of `--Calib-Data` it is calib_data."""
    return name.lstrip("-").lower().replace("-", "_")
