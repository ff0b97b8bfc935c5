"""Networks of each family as PyTorch's exporters write them; needs torch and onnxscript.

    python tests/exported_families.py [NAME ...]

writes `tests/exported/families/NAME.txt`, what they look like without their weights, for tests where there is no torch.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import torch
from exported_encoder import as_text
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)


class Block(nn.Sequential):
    """Conv, BatchNorm, activation."""

    def __init__(
        self, cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None
    ):
        conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(cout), act or nn.ReLU())


class Residual(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class SqueezeExcite(nn.Module):
    """As in MobileNetV3 (HardSigmoid) and EfficientNet (Sigmoid, the mean by hand)."""

    def __init__(self, width: int, gate: nn.Module, inner: nn.Module, by_mean: bool = False):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)
        self.inner, self.gate, self.by_mean = inner, gate, by_mean

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True) if self.by_mean else functional.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.second(self.inner(self.first(pooled))))


class Head(nn.Sequential):
    """Pooling, Flatten, Dropout, Linear."""

    def __init__(self, width: int, classes: int = 10):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(width, classes))


def resnet() -> nn.Module:
    shape = nn.Sequential(Block(8, 8), Block(8, 8, act=nn.Identity()))
    return nn.Sequential(
        Block(3, 8), nn.MaxPool2d(3, 2, 1), Residual(shape), nn.ReLU(), Block(8, 16, stride=2), Head(16)
    )  # fmt: skip


def mobilenet_v2() -> nn.Module:
    inner = nn.Sequential(
        Block(8, 24, 1, act=nn.ReLU6()), Block(24, 24, groups=24, act=nn.ReLU6()), Block(24, 8, 1, act=nn.Identity())
    )
    return nn.Sequential(Block(3, 8, stride=2, act=nn.ReLU6()), Residual(inner), Head(8))


def mobilenet_v3() -> nn.Module:
    inner = nn.Sequential(
        Block(8, 24, 1, act=nn.Hardswish()),
        Block(24, 24, groups=24, act=nn.Hardswish()),
        SqueezeExcite(24, nn.Hardsigmoid(), nn.ReLU()),
        Block(24, 8, 1, act=nn.Identity()),
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16), nn.Hardswish(), nn.Linear(16, 10))
    return nn.Sequential(Block(3, 8, stride=2, act=nn.Hardswish()), Residual(inner), head)


def efficientnet() -> nn.Module:
    inner = nn.Sequential(
        Block(8, 24, 1, act=nn.SiLU()),
        Block(24, 24, groups=24, act=nn.SiLU()),
        SqueezeExcite(24, nn.Sigmoid(), nn.SiLU(), by_mean=True),
        Block(24, 8, 1, act=nn.Identity()),
    )
    return nn.Sequential(Block(3, 8, stride=2, act=nn.SiLU()), Residual(inner), Head(8))


class UNet(nn.Module):
    def __init__(self, bilinear: bool = False):
        super().__init__()
        self.down, self.inner, self.up = Block(3, 8), Block(8, 16), nn.ConvTranspose2d(16, 8, 2, 2)
        if bilinear:
            self.up = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(16, 8, 1))
        self.join, self.out = Block(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x)
        coarse = self.up(self.inner(functional.max_pool2d(fine, 2)))
        return self.out(self.join(torch.cat([fine, coarse], 1)))


class DeepLab(nn.Module):
    """Dilated convolutions, image pooling, bilinear resizing to the input's size, channel argmax left out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(3, 8, stride=2), nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.ReLU())
        self.pool, self.join = Block(8, 8, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        pooled = functional.interpolate(
            self.pool(functional.adaptive_avg_pool2d(y, 1)), size=y.shape[-2:], mode="bilinear"
        )
        return functional.interpolate(self.join(torch.cat([y, pooled], 1)), size=x.shape[-2:], mode="bilinear")


class Yolo(nn.Module):
    """C2f with a split, SPPF, two scales, boxes as distances by a softmax (DFL), decoded."""

    def __init__(self, width: int = 8, bins: int = 4, classes: int = 3):
        super().__init__()
        act = nn.SiLU()
        self.bins, self.classes = bins, classes
        self.stem = Block(3, width, stride=2, act=act)
        self.first, self.branch = Block(width, width, 1, act=act), Residual(Block(width // 2, width // 2, act=act))
        self.last = Block(width // 2 * 3, width, 1, act=act)
        self.down, self.sppf = Block(width, width, stride=2, act=act), Block(4 * width, width, 1, act=act)
        self.join = Block(2 * width, width, act=act)
        self.heads = nn.ModuleList(nn.Conv2d(width, 4 * bins + classes, 1) for _ in range(2))
        self.dfl = nn.Conv2d(bins, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(self.stem(x)).chunk(2, 1)
        fine = self.last(torch.cat([a, b, self.branch(b)], 1))
        coarse = self.down(fine)
        pools = [coarse]
        for _ in range(3):
            pools.append(functional.max_pool2d(pools[-1], 5, 1, 2))
        coarse = self.sppf(torch.cat(pools, 1))
        fine = self.join(torch.cat([functional.interpolate(coarse, scale_factor=2.0, mode="nearest"), fine], 1))
        raw = torch.cat([head(y).flatten(2) for head, y in zip(self.heads, (fine, coarse), strict=True)], 2)
        boxes, scores = raw.split([4 * self.bins, self.classes], 1)
        n = boxes.shape[0]
        distances = self.dfl(boxes.view(n, 4, self.bins, -1).transpose(1, 2).softmax(1)).view(n, 4, -1)
        near, far = distances.chunk(2, 1)
        return torch.cat([(far - near) / 2, near + far, scores.sigmoid()], 1)


class YoloV5(nn.Module):
    """Anchors, and boxes decoded in the way of YOLOv5: sigmoid, times two, square."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.body = nn.Sequential(Block(3, 8, stride=2, act=nn.LeakyReLU(0.1)), Block(8, 8, act=nn.SiLU()))
        self.head = nn.Conv2d(8, 2 * (5 + classes), 1)
        self.register_buffer("anchors", torch.tensor([[10.0, 13.0], [16.0, 30.0]]).view(1, 2, 1, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.body(x))
        n, _, h, w = y.shape
        y = y.view(n, 2, -1, h, w).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
        xy, wh, score = y.split((2, 2, y.shape[-1] - 4), 4)
        return torch.cat((xy * 2 - 0.5, (wh * 2) ** 2 * self.anchors, score), 4).view(n, -1, y.shape[-1])


class Tagger(nn.Module):
    """Token ids to class scores of each token, by a recurrent layer."""

    def __init__(self, cell: Callable[..., nn.Module], width: int = 8):
        super().__init__()
        self.embedding, self.cell = nn.Embedding(20, width), cell(width, width, batch_first=True, bidirectional=True)
        self.hidden, self.out = nn.Linear(2 * width, width), nn.Linear(width, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(self.cell(self.embedding(ids))[0])))


class Crnn(nn.Module):
    """Text lines: convolutions, height pooled away, LSTM over the width, log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Block(1, 8), nn.MaxPool2d(2), Block(8, 16), nn.MaxPool2d((2, 1)), nn.Conv2d(16, 16, (4, 1)), nn.ReLU()
        )
        self.cell, self.out = nn.LSTM(16, 8, bidirectional=True), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).squeeze(2).permute(2, 0, 1)
        return functional.log_softmax(self.out(self.cell(y)[0]), -1)


def super_resolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.PReLU(8), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh(),
        nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2),
    )  # fmt: skip


def style_transfer() -> nn.Module:
    up = nn.Sequential(nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(8, 8, 3))
    return nn.Sequential(
        nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3, 2), nn.InstanceNorm2d(8, affine=True), nn.ReLU(),
        Residual(nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8, affine=True))),
        up, nn.GroupNorm(2, 8), nn.ELU(), nn.Conv2d(8, 3, 1), nn.Sigmoid(),
    )  # fmt: skip


def alexnet() -> nn.Module:
    return nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.LocalResponseNorm(3), nn.Dropout(),
        nn.AvgPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 10), nn.Softmax(1),
    )  # fmt: skip


class ConvNext(nn.Module):
    """Channels last: LayerNorm, Linear, Gelu, and a scale a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.scale = nn.LayerNorm(8), nn.Parameter(torch.full((8,), 0.5))
        self.mlp, self.head = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.scale * self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return self.head(x + y.permute(0, 3, 1, 2))


class ShuffleNet(nn.Module):
    """Channels split, shuffled by Reshape and Transpose, and put together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Block(3, 8, stride=2), Head(8)
        self.branch = nn.Sequential(Block(4, 4, 1), Block(4, 4, groups=4, act=nn.Identity()), Block(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        y = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = y.shape
        return self.head(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


IMAGE, LINE, TOKENS = (2, 3, 16, 16), (2, 1, 16, 24), (2, 6)

FAMILIES: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (resnet, IMAGE),
    "mobilenet-v2": (mobilenet_v2, IMAGE),
    "mobilenet-v3": (mobilenet_v3, IMAGE),
    "efficientnet": (efficientnet, IMAGE),
    "shufflenet": (ShuffleNet, IMAGE),
    "convnext": (ConvNext, IMAGE),
    "alexnet": (alexnet, IMAGE),
    "unet": (UNet, IMAGE),
    "unet-bilinear": (lambda: UNet(bilinear=True), IMAGE),
    "deeplab": (DeepLab, IMAGE),
    "yolo": (Yolo, IMAGE),
    "yolo-v5": (YoloV5, IMAGE),
    "super-resolution": (super_resolution, LINE),
    "style-transfer": (style_transfer, IMAGE),
    "crnn": (Crnn, LINE),
    "lstm": (lambda: Tagger(nn.LSTM), TOKENS),
    "gru": (lambda: Tagger(nn.GRU), TOKENS),
    "rnn": (lambda: Tagger(nn.RNN), TOKENS),
}
"""Family -> how to make its network, and the shape of an input."""

DYNAMIC = {"crnn": {3: "width"}, "lstm": {1: "length"}, "gru": {1: "length"}, "rnn": {1: "length"}}
"""Axes that vary beside the batch; torch.export unrolls recurrent layers, or fails, where their length does."""

EXPORTERS: Mapping[str, tuple[bool, int]] = {
    "torchscript-11": (False, 11),
    "torchscript-13": (False, 13),
    "torchscript-17": (False, 17),
    "dynamo-18": (True, 18),
    "dynamo-21": (True, 21),
}
"""Exporter -> dynamo, operator set."""


WRITTEN = (
    "alexnet.torchscript-11",
    "crnn.torchscript-11",
    "deeplab.torchscript-11",
    "efficientnet.dynamo-18",
    "lstm.torchscript-13",
    "gru.dynamo-18",
    "mobilenet-v3.torchscript-11",
    "shufflenet.torchscript-13",
    "shufflenet.dynamo-21",
    "style-transfer.dynamo-18",
    "super-resolution.torchscript-17",
    "unet.torchscript-11",
    "unet-bilinear.dynamo-18",
    "yolo.torchscript-13",
    "yolo.dynamo-18",
    "yolo-v5.torchscript-11",
)
"""FAMILY.EXPORTER of the texts: all families that exporters write in many nodes."""


def exported(family: str, exporter: str, seed: int = 0) -> onnx.ModelProto:
    """With a dynamic batch; weights that carry the signal on, statistics of BatchNorm as if trained."""
    make, shape = FAMILIES[family]
    dynamo, opset = EXPORTERS[exporter]
    torch.manual_seed(seed)
    module = make().eval()
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(part.weight)
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in ((part.weight, 0.6, 1.4), (part.bias, -0.3, 0.3), (part.running_mean, -0.2, 0.2)):
                nn.init.uniform_(tensor, low, high)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    feed = torch.randint(0, 20, shape) if shape is TOKENS else torch.randn(shape)
    axes = {0: "batch", **({} if dynamo else DYNAMIC.get(family, {}))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            dims = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
            program = torch.onnx.export(
                module, (feed,), dynamo=True, opset_version=opset, input_names=["x"], output_names=["y"],
                dynamic_shapes=(dims,), verbose=False,
            )  # fmt: skip
            assert program is not None
            return program.model_proto
        file = io.BytesIO()
        torch.onnx.export(
            module, (feed,), file, dynamo=False, opset_version=opset, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": axes, "y": {0: "batch"}},
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def main(names: list[str]) -> None:
    """Write the texts, all of them or those named."""
    folder = Path(__file__).parent / "exported" / "families"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or WRITTEN:
        (folder / f"{name}.txt").write_text(as_text(exported(*name.split(".", 1))), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
