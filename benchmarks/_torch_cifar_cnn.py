"""The network of https://arxiv.org/abs/2404.00498 in PyTorch, from pixels to logits."""

import torch
from torch import nn
from torch.nn import functional

GROUPS = (64, 256, 256)


class Group(nn.Module):
    """Two convolutions with norms without scale and GELU; pooling before the first norm."""

    def __init__(self, channels_in, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        for norm in self.norms:
            norm.weight.requires_grad_(False)

    def forward(self, x):
        """Computes the group."""
        x = functional.max_pool2d(self.conv1(x), 2)
        x = functional.gelu(self.norms[0](x))
        return functional.gelu(self.norms[1](self.conv2(x)))


class CifarCNN(nn.Module):
    """uint8 `[N, 32, 32, 3]` to logits."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.whiten = nn.Conv2d(3, 24, 2)
        channels = (24, *GROUPS)
        self.groups = nn.Sequential(*map(Group, channels[:-1], channels[1:]))
        self.classifier = nn.Linear(256, 10, bias=False)

    def forward(self, pixels):
        """Preprocesses and classifies pixels."""
        x = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        x = self.groups(functional.gelu(self.whiten(x)))
        return self.classifier(functional.max_pool2d(x, 3).flatten(1)) / 9


def cifar_cnn(mean, std):
    """The network with random weights."""
    return CifarCNN(mean, std)
