"""torchvision's networks in float64 NumPy, NCHW; parameters are drawn at their first use.

Names and shapes of the state dicts are spelt out here, independently of the package.
"""

import numpy as np


class Network:
    """A state dict whose arrays are drawn at random at their first use, and then kept."""

    def __init__(self, seed=0):
        self._rng = np.random.default_rng(seed)
        self.state = {}

    def _draw(self, name, shape, low, high):
        if name not in self.state:
            self.state[name] = self._rng.uniform(low, high, shape)
        return self.state[name]

    def conv(self, name, x, features, size, stride=1, padding=None, groups=1, bias=False):
        fan = x.shape[1] // groups * size * size
        shape = (features, x.shape[1] // groups, size, size)
        weight = self._draw(f"{name}.weight", shape, -np.sqrt(6 / fan), np.sqrt(6 / fan))
        pad = (size // 2 if padding is None else padding,) * 2
        x = np.pad(x, ((0, 0), (0, 0), pad, pad))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
        windows = windows[:, :, ::stride, ::stride]
        if groups == 1:
            y = np.einsum("ncpqhw,ochw->nopq", windows, weight, optimize=True)
        else:
            y = np.einsum("ncpqhw,chw->ncpq", windows, weight[:, 0])
        return y + self._draw(f"{name}.bias", (features,), -0.5, 0.5)[:, None, None] if bias else y

    def norm(self, name, x):
        shape = (x.shape[1],)
        weight, var = (
            self._draw(f"{name}.{k}", shape, 0.5, 1.5) for k in ("weight", "running_var")
        )
        bias, mean = (self._draw(f"{name}.{k}", shape, -0.5, 0.5) for k in ("bias", "running_mean"))
        self.state[f"{name}.num_batches_tracked"] = np.array(7)
        w, v, b, m = (a[:, None, None] for a in (weight, var, bias, mean))
        return (x - m) / np.sqrt(v + 1e-5) * w + b

    def linear(self, name, x, features, bias=True):
        limit = np.sqrt(3 / x.shape[1])
        y = x @ self._draw(f"{name}.weight", (features, x.shape[1]), -limit, limit).T
        return y + self._draw(f"{name}.bias", (features,), -0.5, 0.5) if bias else y


def relu(x):
    return np.maximum(x, 0)


def max_pool(x, size, stride, padding=0, ceil=False):
    for axis in (2, 3):
        pads = [(0, 0)] * 4
        steps = (x.shape[axis] + 2 * padding - size) / stride
        num = (int(np.ceil(steps)) if ceil else int(np.floor(steps))) + 1
        pads[axis] = (padding, max(padding, (num - 1) * stride + size - x.shape[axis]))
        padded = np.pad(x, pads, constant_values=-np.inf)
        picks = [np.take(padded, range(i * stride, i * stride + size), axis) for i in range(num)]
        x = np.stack([pick.max(axis) for pick in picks], axis)
    return x


def resnet(net, x, num_classes, *, sizes, channels=4, is_deep=False, is_cifar=False):
    """torchvision's ResNet, or with `is_cifar` the CIFAR variant, with another stem and names."""
    side, last = ("shortcut", "linear") if is_cifar else ("downsample", "fc")
    x = net.conv("conv1", x, channels, *((3, 1) if is_cifar else (7, 2)))
    x = relu(net.norm("bn1", x))
    x = x if is_cifar else max_pool(x, 3, 2, 1)
    for stage, num_blocks in enumerate(sizes, 1):
        width = channels * 2 ** (stage - 1)
        for index in range(num_blocks):
            block = f"layer{stage}.{index}"
            stride = 2 if stage > 1 and index == 0 else 1
            plan = [(3, width, stride), (3, width, 1)]
            if is_deep:
                plan = [(1, width, 1), (3, width, stride), (1, 4 * width, 1)]
            y = x
            for i, (size, features, step) in enumerate(plan, 1):
                y = net.norm(
                    f"{block}.bn{i}", net.conv(f"{block}.conv{i}", y, features, size, step)
                )
                y = relu(y) if i < len(plan) else y
            if y.shape != x.shape:
                x = net.conv(f"{block}.{side}.0", x, y.shape[1], 1, stride)
                x = net.norm(f"{block}.{side}.1", x)
            x = relu(x + y)
    return net.linear(last, x.mean((2, 3)), num_classes, bias=not is_cifar)


def vgg(net, x, num_classes, *, has_norms, hidden=None, channels=4):
    """torchvision's vgg16 and vgg16_bn; `hidden=None` gives the head of the CIFAR variant."""
    index = 0
    for stage, num_convs in enumerate((2, 2, 3, 3, 3)):
        for _ in range(num_convs):
            x = net.conv(
                f"features.{index}", x, min(channels * 2**stage, 8 * channels), 3, bias=True
            )
            x = relu(net.norm(f"features.{index + 1}", x) if has_norms else x)
            index += 3 if has_norms else 2
        x, index = max_pool(x, 2, 2), index + 1
    if hidden is None:
        return net.linear("classifier", x.mean((2, 3)), num_classes)
    assert x.shape[2:] == (7, 7)  # adaptive pooling is the identity
    x = relu(net.linear("classifier.0", x.reshape(len(x), -1), hidden))
    return net.linear("classifier.6", relu(net.linear("classifier.3", x, hidden)), num_classes)


def mobilenet_v2(net, x, num_classes, *, channels, last=1280):
    """MobileNetV2 with the given `channels` of the stem and the seven stages."""

    def unit(name, x, *args, **options):
        return np.clip(net.norm(f"{name}.1", net.conv(f"{name}.0", x, *args, **options)), 0, 6)

    x, index = unit("features.0", x, channels[0], 3, 2), 1
    strides, repeats = (1, 2, 2, 2, 1, 2, 1), (1, 2, 3, 4, 3, 3, 1)
    for stage, (features, stride, repeat) in enumerate(
        zip(channels[1:], strides, repeats, strict=True)
    ):
        for i in range(repeat):
            y, part, scope = x, 0, f"features.{index}.conv"
            if stage > 0:
                y, part = unit(f"{scope}.0", y, 6 * y.shape[1], 1), 1
            step = stride if i == 0 else 1
            y = unit(f"{scope}.{part}", y, y.shape[1], 3, step, groups=y.shape[1])
            y = net.norm(f"{scope}.{part + 2}", net.conv(f"{scope}.{part + 1}", y, features, 1))
            x = x + y if step == 1 and x.shape == y.shape else y
            index += 1
    x = unit(f"features.{index}", x, last, 1)
    return net.linear("classifier.1", x.mean((2, 3)), num_classes)


def alexnet(net, x, num_classes, *, channels, hidden):
    plan = [(0, 11, 4, 2), (3, 5, 1, 2), (6, 3, 1, 1), (8, 3, 1, 1), (10, 3, 1, 1)]
    for (index, size, stride, padding), features in zip(plan, channels, strict=True):
        x = relu(net.conv(f"features.{index}", x, features, size, stride, padding, bias=True))
        x = max_pool(x, 3, 2) if index in (0, 3, 10) else x
    assert x.shape[2:] == (6, 6)
    x = relu(net.linear("classifier.1", x.reshape(len(x), -1), hidden))
    return net.linear("classifier.6", relu(net.linear("classifier.4", x, hidden)), num_classes)


def squeezenet(net, x, num_classes, *, squeezes, channels=16):
    """SqueezeNet 1.1; each expand layer has four times the channels of its squeeze layer."""
    x = max_pool(relu(net.conv("features.0", x, channels, 3, 2, 0, bias=True)), 3, 2, ceil=True)
    for index, squeeze in zip((3, 4, 6, 7, 9, 10, 11, 12), squeezes, strict=True):
        x = max_pool(x, 3, 2, ceil=True) if index in (6, 9) else x
        name = f"features.{index}"
        x = relu(net.conv(f"{name}.squeeze", x, squeeze, 1, bias=True))
        sides = [(f"{name}.expand{k}x{k}", k) for k in (1, 3)]
        x = np.concatenate([relu(net.conv(s, x, 4 * squeeze, k, bias=True)) for s, k in sides], 1)
    return relu(net.conv("classifier.1", x, num_classes, 1, bias=True)).mean((2, 3))
