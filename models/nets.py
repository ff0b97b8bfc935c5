"""The three small networks (torch): each maps a float N x C x 32 x 32 image to ten logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 10


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Sequential):
    """A ResNet of three stages of two blocks each, for grey images."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        width = 16
        for outputs, stride in ((16, 1), (32, 2), (64, 2)):
            layers += [ResidualBlock(width, outputs, stride), ResidualBlock(outputs, outputs, 1)]
            width = outputs
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, and its BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand (1x1), filter each channel (3x3 depthwise), project (1x1, linear)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [] if expansion == 1 else [*_conv_bn(inputs, hidden, 1), nn.ReLU6()]
        self.body = nn.Sequential(
            *expand,
            *_conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(),
            *_conv_bn(hidden, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class MobileNet(nn.Sequential):
    """MobileNetV2 scaled down, for colour images."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [*_conv_bn(3, 16, 3, stride=2), nn.ReLU6()]
        width = 16
        stages = ((16, 1, 1, 1), (24, 2, 1, 6), (32, 2, 2, 6), (48, 3, 2, 6))
        for outputs, repeats, stride, expansion in stages:
            for repeat in range(repeats):
                layers.append(InvertedResidual(width, outputs, 1 if repeat else stride, expansion))
                width = outputs
        head = [*_conv_bn(width, 128, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers, *head, nn.Linear(128, CLASSES))


class Attention(nn.Module):
    """Multi-head self-attention, spelt out so that its matrix products are nodes of the exported graph."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(-2, -1) * self.scale, dim=-1)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return mixed

    def _split(self, x: Tensor) -> Tensor:
        """N x tokens x width to N x heads x tokens x (width / heads)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class EncoderBlock(nn.Module):
    """A pre-LayerNorm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width * mlp_ratio),
            nn.GELU(),
            nn.Linear(width * mlp_ratio, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        y: Tensor = x + self.mlp(x)
        return y


class VisionTransformer(nn.Module):
    """A ViT for grey images: one token for each 4x4 pixels, and a class token.

    A few small convolutions make the tokens (Xiao et al. 2021, "Early convolutions help transformers see
    better"): with a single 4x4 one this small net learns several times slower.
    """

    def __init__(self, width: int = 96, depth: int = 3, heads: int = 4, mlp_ratio: int = 2) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            *(*_conv_bn(1, 24, 3, stride=2), nn.ReLU()),
            *(*_conv_bn(24, 48, 3, stride=2), nn.ReLU()),
            *(*_conv_bn(48, 48, 3), nn.ReLU()),
            nn.Conv2d(48, width, 1),
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 65, width) * 0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], dim=1)
        tokens = self.blocks(tokens + self.positions)
        logits: Tensor = self.head(self.norm(tokens[:, 0]))
        return logits
