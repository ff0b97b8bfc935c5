# %% [markdown]
# # 3.1 Ranges
#
# How wide should a grid be? Tables 1 to 3 of the [white paper](https://arxiv.org/abs/2106.08295) compare min-max, the
# least squared error and, for logits, cross-entropy. The same here, on the bundled ResNet of digits: every layer on a
# grid, per tensor, nothing else done.

# %%
from digits import Table, network
from drawing import bars

net = network("resnet_digits")
print(f"float: {net.top1(net.path):.1f} % of {len(net.labels)} images")

# %% [markdown]
# ## Weights alone (table 1)
#
# Activations stay in float, so that only the weights' ranges matter.

# %%
methods = ("minmax", "mse", "percentile:99.9")
weights = {
    method: [net.top1(net.quantized(preset=f"w{bits}", per_channel=False, weight_range=method)) for bits in (8, 4, 3)]
    for method in methods
}
bars(["8 bits", "4 bits", "3 bits"], weights, "Weights per tensor, activations in float", "top-1 %")

# %% [markdown]
# At 8 bits the range does not matter. At 3 it decides everything: the outermost weights are few, and a grid that
# reaches out to them has next to nothing left for the others.

# %%
assert min(values[0] for values in weights.values()) > 97
assert weights["mse"][2] > weights["minmax"][2] + 30

# %% [markdown]
# ## Activations alone (table 2)
#
# Now the weights stay in float. Ranges are set on 32 calibration images.

# %%
activations = {
    method: [net.top1(net.quantized(preset=f"a{bits}", activation_range=method)) for bits in (8, 4)]
    for method in methods
}
bars(["8 bits", "4 bits"], activations, "Activations per tensor, weights in float", "top-1 %")

# %% [markdown]
# On this network no method stands out for activations, even at 4 bits: behind BatchNorm and Relu its activations have
# short tails. Networks with outliers differ ([table 2 on larger networks](../../bench/results/accuracy.md)), which is
# why onnxq takes the least squared error for both.

# %%
assert max(values[1] for values in activations.values()) - min(values[1] for values in activations.values()) < 3

# %% [markdown]
# ## Per channel (table 3's finding)
#
# One scale for each output channel costs nothing at run time on most targets. With min-max ranges, which need it most:

# %%
rows = []
for bits in (8, 4, 3):
    settings = {"preset": f"w{bits}", "weight_range": "minmax"}
    tensor, channel = (net.top1(net.quantized(per_channel=each, **settings)) for each in (False, True))
    rows.append((f"W{bits}", tensor, channel))
Table(["weights", "per tensor", "per channel"], rows)

# %% [markdown]
# [The tables of all methods](../../bench/results/accuracy.md) on larger networks have entropy, BatchNorm's moments and
# cross-entropy, too.
