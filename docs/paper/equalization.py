# %% [markdown]
# # 3.2 Cross-layer equalization
#
# MobileNets fall to chance when their weights get one 8-bit scale per tensor: figure 5 of the [white
# paper](https://arxiv.org/abs/2106.08295) shows why, its table on cross-layer equalization (CLE) what helps. The
# bundled MobileNetV2 was trained to show the same.

# %%
import numpy as np
from digits import Table, network

net = network("mobilenet_digits")
print(f"float: {net.top1(net.path):.1f} % of {len(net.labels)} images")

# %% [markdown]
# ## The idea, in two layers
#
# Relu lets a positive factor pass: relu(s x) = s relu(x). So a channel can be made smaller by s in one layer and
# larger by s in the next, equation (20), and the function stays the same. With the largest weights r1 and r2 of a
# channel on either side, s = sqrt(r1 r2) / r2 makes both the same, equation (22):

# %%
rng = np.random.default_rng(0)
W1 = rng.normal(size=(8, 16)) * np.logspace(-2, 1, 8)[:, None]
W2 = rng.normal(size=(4, 8)) / np.logspace(-2, 1, 8)
r1, r2 = np.abs(W1).max(axis=1), np.abs(W2).max(axis=0)
s = np.sqrt(r1 * r2) / r2
V1, V2 = W1 / s[:, None], W2 * s


def rounded(w):
    scale = np.abs(w).max() / 127
    return scale * np.rint(w / scale)


def output(first, second, x):
    return second @ np.maximum(first @ x, 0)


x = rng.normal(size=(16, 500))
wanted = output(W1, W2, x)
assert np.allclose(output(V1, V2, x), wanted)
before, after = (np.sum((output(rounded(a), rounded(b), x) - wanted) ** 2) for a, b in ((W1, W2), (V1, V2)))
noise = 10 * np.log10(np.sum(wanted**2) / np.array([before, after]))
print("channels reach from", r1.min().round(2), "to", r1.max().round(2), "; SQNR of the output, dB:", noise.round(1))
assert noise[1] > noise[0] + 10

# %% [markdown]
# ## The network (the paper's table on CLE)
#
# W8A8, one scale per tensor, min-max ranges. Steps are added one after another: `cle="range"` is the paper's rule,
# `"noise"` weighs what each channel's noise does to the output. Dead channels are ones whose variance in training was
# next to nothing: BatchNorm folding blows them up, although they carry a constant.

# %%
steps = {
    "as it is": {},
    "dead channels emptied": {"dead_channels": True},
    "CLE by range": {"cle": "range"},
    "CLE by noise": {"cle": "noise"},
    "both": {"dead_channels": True, "cle": "noise"},
    "both, high biases absorbed": {"dead_channels": True, "cle": "noise", "absorb": True},
}
scores = {name: net.top1(net.quantized(per_channel=False, effort="high", **step)) for name, step in steps.items()}
scores["as it is, per channel"] = net.top1(net.quantized())
Table(["W8A8", "top-1 %"], list(scores.items()))

# %% [markdown]
# As in the paper: from a ruined network to the float network's accuracy, without any data for training and without a
# scale for each channel.

# %%
assert scores["as it is"] < 60
assert scores["both"] > scores["as it is, per channel"] - 2
