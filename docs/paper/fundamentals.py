# %% [markdown]
# # 2 Quantization fundamentals
#
# What quantization is, in numbers that can be checked: equations (4) to (13) of the [white
# paper](https://arxiv.org/abs/2106.08295), written out in NumPy and held against what ONNX Runtime computes.

# %%
import numpy as np
import onnx
import onnxruntime as ort
from digits import network
from drawing import curves
from onnx import numpy_helper, parser

rng = np.random.default_rng(0)

# %% [markdown]
# ## 2.2 The affine quantizer
#
# A real number x becomes the integer q = clip(round(x / s) + z, 0, 2^b - 1), and stands for s (q - z) from then on,
# equations (4) to (7). The zero point z makes sure that 0 itself is on the grid: padding and Relu stay exact.


# %%
def quantize(x, s, z, bits=8):
    return np.clip(np.rint(x / s) + z, 0, 2**bits - 1)


def dequantize(q, s, z):
    return s * (q - z)


x = rng.normal(size=1000).astype(np.float32)
lo, hi = min(x.min(), 0), max(x.max(), 0)
s = np.float32((hi - lo) / 255)
z = int(np.rint(-lo / s))
print(f"range {lo:.2f} to {hi:.2f}, scale {s:.4f}, zero point {z}")
print("largest error, in scales:", round(float(np.abs(dequantize(quantize(x, s, z), s, z) - x).max() / s), 2))

# %% [markdown]
# No value is further off than half a scale. ONNX's QuantizeLinear is this very function, to the bit:

# %%
graph = parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 13]> g (float[N] x, float s, uint8 z) => (uint8[N] q) '
    "{ q = QuantizeLinear(x, s, z) }"
)
session = ort.InferenceSession(graph.SerializeToString())
(q,) = session.run(None, {"x": x, "s": np.array(s), "z": np.array(z, np.uint8)})
assert np.array_equal(q, quantize(x, s, z).astype(np.uint8))

# %% [markdown]
# ## 2.2 Clipping error and rounding error
#
# A narrow range has a fine grid and cuts off what lies beyond; a wide one cuts nothing and rounds coarsely. The best
# range lies in between, and the fewer the bits, the further inside (equation (16) looks for it):


# %%
def error(limit, bits):
    scale, middle = 2 * limit / (2**bits - 1), 2 ** (bits - 1)
    return float(np.mean((dequantize(quantize(x, scale, middle, bits), scale, middle) - x) ** 2))


limits = np.linspace(1, 5, 41)
errors = {f"{bits} bits": [10 * np.log10(np.mean(x**2) / error(c, bits)) for c in limits] for bits in (3, 4, 8)}
best = {name: round(float(limits[np.argmax(values)]), 1) for name, values in errors.items()}
assert best["3 bits"] < best["4 bits"] < best["8 bits"]
print("best limit:", best, "largest value:", round(float(np.abs(x).max()), 1))
curves(limits, errors, "SQNR of a normal distribution, dB", "range: minus to plus this many deviations")

# %% [markdown]
# ## 2.2.1 Symmetric or asymmetric
#
# A symmetric grid has z = 0. For values on both sides that costs nothing. Behind a Relu a *signed* symmetric grid
# wastes half of its integers, one bit, which is 6 dB; an unsigned one (8b) wastes none.


# %%
def sqnr(x, y):
    return round(float(10 * np.log10(np.sum(x**2) / np.sum((x - y) ** 2))), 1)


relu = np.maximum(x, 0)
signed = np.float32(relu.max() / 127)
unsigned = np.float32(relu.max() / 255)
fake_signed = signed * np.clip(np.rint(relu / signed), -128, 127)
fake_unsigned = dequantize(quantize(relu, unsigned, 0), unsigned, 0)
print("behind Relu, signed symmetric:  ", sqnr(relu, fake_signed), "dB")
print("behind Relu, unsigned symmetric:", sqnr(relu, fake_unsigned), "dB")
assert 5 < sqnr(relu, fake_unsigned) - sqnr(relu, fake_signed) < 7

# %% [markdown]
# ## 2.1 Why it is worth it: sums of integers
#
# A layer's output is a sum of products, and with both factors on grids the sum is one of integers, scaled once at the
# end. With zero points z_w and z_x, equation (13) has four terms:
#
#     W x = s_w s_x (sum w q  -  z_w sum q  -  z_x sum w  +  n z_w z_x)
#
# The second depends on the input and would have to be computed in each run, which is why weights are symmetric (z_w =
# 0). The third is known beforehand and goes into the bias.

# %%
weights, inputs = rng.integers(-127, 128, (4, 64)), rng.integers(0, 256, 64)
s_w, s_x, z_x = 0.01, 0.05, 77
in_float = (s_w * weights) @ (s_x * (inputs - z_x))
in_integers = s_w * s_x * (weights @ inputs - z_x * weights.sum(axis=1))
assert np.allclose(in_float, in_integers, rtol=1e-12)
print(in_integers.round(2))

# %% [markdown]
# ## 2.3.1 Folding BatchNorm
#
# At inference BatchNorm is y = gamma (x - mu) / sigma + beta for each channel, so that it can be written into the
# weights and bias of the layer before it, equations (10) to (12). Here for the first layer of the bundled MobileNetV2:

# %%
net = network("mobilenet_digits", 20)
model = onnx.load(net.path)
value = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
conv, norm = (next(n for n in model.graph.node if n.op_type == op) for op in ("Conv", "BatchNormalization"))
gamma, beta, mu, variance = (value[name] for name in norm.input[1:])
factor = gamma / np.sqrt(variance + onnx.helper.get_node_attr_value(norm, "epsilon"))

folded = onnx.ModelProto()
folded.CopyFrom(model)
for each in folded.graph.initializer:
    if each.name == conv.input[1]:
        each.CopyFrom(numpy_helper.from_array(value[each.name] * factor[:, None, None, None], each.name))
bias = numpy_helper.from_array(beta - mu * factor, "folded_bias")
folded.graph.initializer.append(bias)
first = next(n for n in folded.graph.node if n.op_type == "Conv")
first.input.append("folded_bias")
first.output[0] = norm.output[0]
folded.graph.node.remove(next(n for n in folded.graph.node if n.op_type == "BatchNormalization"))


def outputs(proto):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it would fold the other one, too
    return ort.InferenceSession(proto.SerializeToString(), options).run(None, {"image": net.images})[0]


print("SQNR of the folded network:", round(sqnr(outputs(model), outputs(folded))), "dB: float rounding")
assert sqnr(outputs(model), outputs(folded)) > 100

# %% [markdown]
# ## 2.2.3 One scale per tensor, or one per channel
#
# Folding has a price: channels with a small variance are blown up. One scale for the whole weight then serves none but
# the largest channel. This is the weight of a depthwise layer of the same network, in 8 bits:

# %%
layer = "5.body.3.weight"
conv = next(n for n in model.graph.node if layer in n.input)
norm = next(n for n in model.graph.node if n.op_type == "BatchNormalization" and n.input[0] == conv.output[0])
gamma, variance = value[norm.input[1]], value[norm.input[4]]
w = value[layer].reshape(len(gamma), -1) * (gamma / np.sqrt(variance + 1e-5))[:, None]
per_tensor, per_channel = np.abs(w).max() / 127, np.abs(w).max(axis=1, keepdims=True) / 127
channels = {
    name: np.array([sqnr(a, b) for a, b in zip(w, scale * np.rint(w / scale), strict=True)])
    for name, scale in (("per tensor", per_tensor), ("per channel", per_channel))
}
for name, decibels in channels.items():
    lost = (decibels < 10).sum()
    print(f"{name}: median channel {np.median(decibels):.1f} dB, {lost} of {len(decibels)} channels below 10 dB")
assert np.median(channels["per tensor"]) < 5 < 35 < np.median(channels["per channel"])

# %% [markdown]
# With one scale for the tensor most channels are noise. [Cross-layer equalization](equalization.md) is the remedy
# where a target has no scale for each channel.
