"""Encodings files: scales and offsets of a float model's tensors in JSON, as Qualcomm's AIMET and QNN exchange them.

Such a file stands beside a float ONNX model, whose tensors it names; QNN's converter takes both
(`--quantization_overrides`). Three schemas are in use, by AIMET's encoding specification and its source
(`aimet_onnx/_encoding.py`):

    0.6.1   {"version", "activation_encodings": {name: [entry]}, "param_encodings": {name: [entry, ...]},
             "quantizer_args"}; entry: bitwidth, dtype "int" | "float", is_symmetric "True" | "False", min, max,
            offset, scale; several entries are the channels. No blocks. 0.4 and 0.5 are read alike.
    1.0.0   lists of {"name", "dtype": "INT" | "FLOAT", "bw", "is_sym", "enc_type", "scale": [...], "offset": [...]},
            enc_type PER_TENSOR, PER_CHANNEL, PER_BLOCK (with block_size; scales in the order of the tensor's axes), or
            LPBQ: block scales are per_block_int_scale (channel by channel) times scale (a channel), compressed_bw bits
    2.0.0   {"encodings": [{"name", "output_dtype": "uint8", "y_scale", "y_zero_point"?, "axis"?, "block_size"?}]}, as
            QuantizeLinear has them; zero points left out are 0; LPBQ: per_channel_float_scale, per_block_int_scale

Offsets of 0.6.1 and 1.0.0 refer to the unsigned grid, whatever `is_symmetric` says:

    x = scale (q + offset),  q in [0, 2^b),  offset = -z for uint zero points z, -(z + 2^(b-1)) for int ones

Biases are not written: their scale is that of the accumulator, which QNN computes itself (`--bias_bitwidth 32`).
"""

from .read import read
from .record import Encoding, encoding_of
from .write import VERSIONS, to_json

__all__ = ["VERSIONS", "Encoding", "encoding_of", "read", "to_json"]
