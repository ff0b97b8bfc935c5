# %% [markdown]
# # 3.5, 3.6 The pipeline
#
# All of it together is figure 8 of the [white paper](https://arxiv.org/abs/2106.08295), and one call of onnxq. Its
# table of results has several networks at W8A8 and W4A8, per tensor and per channel; here are the three that are
# bundled.
#
# ![The pipeline](../images/figure8.svg)

# %%
from digits import MODELS, Table, network

import onnxq

rows = []
for name in ("resnet_digits", "mobilenet_digits", "vit_digits"):
    net = network(name)
    scores = [net.top1(net.path)]
    for preset, rounding in (("w8a8", "nearest"), ("w4a8", "gptq")):
        settings = {"preset": preset, "rounding": rounding, "samples": 32, "effort": "fast", "latency": "off"}
        result = onnxq.quantize(net.path, MODELS / name / "calib", **settings)
        scores.append(net.top1(result.model))
    rows.append((name, *scores))
Table(["top-1 %", "float", "W8A8", "W4A8"], rows)

# %% [markdown]
# Per channel, both widths keep the float network's accuracy, to within what 500 images can tell. Per tensor MobileNet
# needs [equalization](equalization.md). What became of each step stands in the report:

# %%
for step in result.report.steps:
    if step.changed:
        print(f"{step.title}: {step.changed} changed")
assert all(abs(score - row[1]) < 2 for row in rows for score in row[2:])
