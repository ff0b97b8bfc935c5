# %% [markdown]
# # 3.4 AdaRound
#
# Rounding each weight to its nearest integer is not the best that can be done with a layer: what counts is the layer's
# *output*, and errors of different weights can cancel. The [white paper](https://arxiv.org/abs/2106.08295) shows it by
# chance (rounding at random, many times) and then learns the rounding, equations (30) to (35).

# %%
import numpy as np
from digits import Table, network
from drawing import curves

# %% [markdown]
# ## Rounding at random
#
# One layer with 4-bit weights and inputs that are correlated, as those of real networks are. Each weight is rounded up
# or down at random, with the odds of its distance, a hundred times. The cost of a rounding is the squared error of the
# output, equation (30):

# %%
rng = np.random.default_rng(1)
mix = rng.normal(size=(6, 24))
x = np.maximum(mix.T @ rng.normal(size=(6, 4000)) + 0.3 * rng.normal(size=(24, 4000)), 0)
gram = x @ x.T / x.shape[1]
w = rng.normal(size=24)
scale = np.abs(w).max() / 7
floor = np.floor(w / scale)
share = w / scale - floor


def cost(up):
    d = scale * (floor + up) - w
    return float(d @ gram @ d)


nearest = cost(share > 0.5)
random = sorted(cost(rng.random(24) < share) for _ in range(100))
better = sum(each < nearest for each in random)
print(
    f"nearest: {nearest:.3f}; at random: {random[0]:.3f} to {random[-1]:.3f}; {better} of 100 are better than nearest"
)
curves(
    range(100),
    {"at random, sorted": random, "nearest": [nearest] * 100},
    "Squared error of the output",
    "100 roundings",
)

# %% [markdown]
# Some of the hundred are better than nearest, by luck alone. An optimiser has no need of luck. Coordinate descent
# changes one weight after another as long as the cost falls; every step is exact, because the cost is a quadratic form
# in the weights:

# %%
up = (share > 0.5).astype(float)
while True:
    trials = [cost(np.where(np.arange(24) == n, 1 - up, up)) for n in range(24)]
    if min(trials) >= cost(up) - 1e-12:
        break
    up[np.argmin(trials)] = 1 - up[np.argmin(trials)]
print(f"coordinate descent: {cost(up):.3f}, {nearest / cost(up):.1f} times less than nearest")
assert cost(up) < min(random[0], nearest)

# %% [markdown]
# ## The network (the paper's tables on AdaRound)
#
# The bundled ResNet with 3-bit weights, one scale per tensor, 8-bit activations. onnxq rounds without PyTorch, layer
# after layer, each with the layers before it already quantized; samples that are held out decide whether the result is
# kept.

# %%
net = network("resnet_digits")
scores = {"float": net.top1(net.path)}
for rounding in ("nearest", "gptq", "coordinate-descent", "adaround"):
    settings = {"preset": "w3a8", "per_channel": False, "weight_range": "mse", "effort": "fast"}
    scores[rounding] = net.top1(net.quantized(rounding=rounding, **settings))
Table(["W3A8", "top-1 %"], list(scores.items()))

# %% [markdown]
# Nearest loses points that all three keep. AdaRound is by far the slowest of them, and no better here. [Larger
# networks](../../bench/results/accuracy-rounding.md) show the same, with the layers' errors.

# %%
assert min(scores[name] for name in ("gptq", "coordinate-descent", "adaround")) > scores["nearest"] + 1
