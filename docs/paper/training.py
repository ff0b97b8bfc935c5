# %% [markdown]
# # 4 Quantization-aware training
#
# Where no rounding helps any more, the network is trained with the quantizers in it: figure 12 of the [white
# paper](https://arxiv.org/abs/2106.08295). This needs PyTorch (`pip install 'onnxq[qat]'`), and nothing of the code
# that the network was trained with: ONNX in, ONNX out, and the float network is the teacher.

# %%
import numpy as np
from digits import network
from drawing import curves

import onnxq
from onnxq.qat import Recipe

# %% [markdown]
# ## 4.1 The gradient of rounding
#
# Rounding has the gradient 0 almost everywhere. The straight-through estimator takes it as 1 inside the grid and 0
# beyond it, equations (36) and (37). A weight that is learned this way jumps between the two integers on either side
# of its best value:

# %%
target, w, path = 0.33, 0.0, []
scale = 0.25
for _ in range(60):
    rounded = scale * np.clip(np.rint(w / scale), -4, 3)
    inside = abs(w) < 4 * scale
    w -= 0.1 * 2 * (rounded - target) * inside
    path.append(w)
curves(range(60), {"weight": path, "best value": [target] * 60}, "A weight that learns through rounding", "steps")

# %% [markdown]
# ## 4.2 A network
#
# The bundled ResNet with 3-bit weights and 4-bit activations, a width at which rounding alone loses points. Fifty
# steps without labels on its own calibration images are far too little training, and already bring some of it back.

# %%
net = network("resnet_digits")
folder = net.path.parent / "calib"
settings = {"preset": "w3a4", "force_int_kernels": True, "effort": "fast"}
start = onnxq.quantize(net.path, folder, **settings)
recipe = Recipe(steps=50, batch=32, evaluations=4, augment=("crop",))
trained = onnxq.qat.train(net.path, folder, recipe=recipe, **settings)
before, after = net.top1(start.model), net.top1(trained.model)
print(f"float {net.top1(net.path):.1f} %, after quantization {before:.1f} %, after 50 steps {after:.1f} %")
assert after > before

# %% [markdown]
# [Longer runs](../../bench/results/accuracy-qat.md) bring W4A4 within a point of float.
