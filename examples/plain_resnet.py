"""A small ResNet in plain Flax Linen, without any use of mlg_jax."""

import flax.linen as nn


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x, train):
        def norm(y):
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(y)

        y = nn.Conv(self.features, (3, 3), self.strides, use_bias=False)(x)
        y = nn.relu(norm(y))
        y = norm(nn.Conv(self.features, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = norm(nn.Conv(self.features, (1, 1), self.strides, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Three blocks, `[N, H, W, C]` to logits `[N, num_classes]`."""

    num_classes: int = 10
    width: int = 16

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(self.width, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        for stage in range(3):
            x = Block(self.width * 2**stage, strides=1 if stage == 0 else 2)(x, train)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))
