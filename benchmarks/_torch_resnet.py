"""ResNet-18 for CIFAR in PyTorch, from pixels to logits."""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity()
        if channels_in != channels:
            conv = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x):
        """Computes the block."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """uint8 `[N, H, W, 3]` to logits."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        widths = (64, 64, 128, 256, 512)
        blocks = []
        for stage in range(4):
            stride = 1 if stage == 0 else 2
            blocks.append(Block(widths[stage], widths[stage + 1], stride))
            blocks.append(Block(widths[stage + 1], widths[stage + 1], 1))
        self.stem = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(512, 10, bias=False)

    def forward(self, pixels):
        """Preprocesses and classifies pixels."""
        x = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        x = functional.relu(self.norm(self.stem(x)))
        return self.classifier(self.blocks(x).mean((2, 3)))


def resnet18(mean, std):
    """A ResNet-18 with random weights."""
    return ResNet(mean, std)
