# %% [markdown]
# # 3.7 Debugging
#
# Figure 9 of the [white paper](https://arxiv.org/abs/2106.08295) is a workflow for the case that the quantized network
# is bad. [Tutorial 3](../tutorials/bad-int8.md) walks through it on the command line; this is the same from Python.
#
# ![The debugging workflow](../images/figure9.svg)

# %%
from digits import MODELS, PLAIN, Table, network

import onnxq

net = network("mobilenet_digits")
calib = MODELS / net.name / "calib"
plain = onnxq.Options(**{**PLAIN, "per_channel": False})
bad = net.quantized(per_channel=False)
print(f"float {net.top1(net.path):.1f} %, quantized {net.top1(bad):.1f} %")

# %% [markdown]
# ## Sanity check, weights or activations
#
# With all quantizers off the network has to be the float network. Then each side alone:

# %%
sides = {preset: net.top1(net.quantized(per_channel=False, preset=preset)) for preset in ("w8", "a8")}
print(f"weights alone {sides['w8']:.1f} %, activations alone {sides['a8']:.1f} %")
assert sides["w8"] < 60 < 90 < sides["a8"]

# %% [markdown]
# ## Which quantizers
#
# Each alone on a grid, everything else in float:

# %%
analysis = onnxq.sensitivity(net.path, calib, options=plain)
worst = analysis.measured[:8]
print("all off:", round(analysis.off), "dB; all on:", round(analysis.on, 1), "dB")
Table(["quantizer", "outputs, dB, it alone on", "its own SQNR, dB"], [(u.unit, u.only, u.own_db) for u in worst])

# %% [markdown]
# All of the worst are weights of depthwise convolutions.

# %%
assert all(unit.unit.endswith(".3.weight") for unit in worst[:7])

# %% [markdown]
# ## Causes and remedies
#
# `onnxq.debug` names the cause of each, tries the remedies that suit it, and keeps what helps:

# %%
found = onnxq.debug(net.path, calib, options=plain, on_entry=lambda entry: print(entry.title))
repaired = onnxq.quantize(net.path, calib, options=found.options)
print(f"repaired: {net.top1(repaired.model):.1f} %")
assert net.top1(repaired.model) > net.top1(net.path) - 3
