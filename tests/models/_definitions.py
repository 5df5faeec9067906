"""The published forward passes in float64 NumPy, written independently from torchvision's code."""

import math

import numpy as np

RELU6 = (0.0, 6.0)


def forward(name, stem, variables, x):
    """Logits of a network; names and shapes of its layers are taken from the variables."""
    params = variables["params"]
    return NETWORKS[name](stem, params, variables.get("batch_stats", {}), x)


def vgg16(stem, p, s, x):
    for stage, num_convs in enumerate((2, 2, 3, 3, 3), 1):
        layers, stats = p[f"stage{stage}"], s.get(f"stage{stage}", {})
        for i in range(1, num_convs + 1):
            x = conv(x, layers[f"conv{i}"])
            if stem == "cifar":
                x = norm(x, layers[f"norm{i}"], stats[f"norm{i}"])
            x = relu(x)
        x = max_pool(x, 2)
    if stem == "cifar":
        return dense(x.mean((1, 2)), p["classifier"])
    return hidden_layers(p, adaptive_mean_pool(x, 7))


def alexnet(stem, p, s, x):
    x = conv(x, p["stage1"]["conv1"], *((1, 1) if stem == "cifar" else (4, 2)))
    x = max_pool(relu(x), 3)
    x = max_pool(relu(conv(x, p["stage2"]["conv1"])), 3)
    for i in (1, 2, 3):
        x = relu(conv(x, p["stage3"][f"conv{i}"]))
    return hidden_layers(p, adaptive_mean_pool(max_pool(x, 3), 3 if stem == "cifar" else 6))


def squeezenet(stem, p, s, x):
    x = relu(conv(x, p["stem_conv"], *((1, 1) if stem == "cifar" else (2, 0))))
    pooled_before = (4, 6) if stem == "cifar" else (2, 4, 6)
    for i in range(2, 10):
        if i in pooled_before:
            x = max_pool(x, 3, ceil=True)
        fire = p[f"fire{i}"]
        x = relu(conv(x, fire["squeeze_conv"]))
        x = np.concatenate([relu(conv(x, fire[f"expand{k}_conv"])) for k in ("1x1", "3x3")], -1)
    return relu(dense(x, p["classifier"])).mean((1, 2))


def mobilenet_v2(stem, p, s, x):
    def unit(x, scope, stats, name, act=True, **options):
        x = conv(x, scope[f"{name}_conv"], **options)
        x = norm(x, scope[f"{name}_norm"], stats[f"{name}_norm"])
        return np.clip(x, *RELU6) if act else x

    strides = (1, 1, 2, 2, 1, 2, 1) if stem == "cifar" else (1, 2, 2, 2, 1, 2, 1)
    x = unit(x, p, s, "stem", stride=1 if stem == "cifar" else 2)
    for stage, (stride, num_blocks) in enumerate(zip(strides, (1, 2, 3, 4, 3, 3, 1), strict=True)):
        for i in range(num_blocks):
            scopes = [tree[f"stage{stage + 1}_block{i + 1}"] for tree in (p, s)]
            y = unit(x, *scopes, "expand") if stage > 0 else x
            now = stride if i == 0 else 1
            y = unit(y, *scopes, "depthwise", stride=now, groups=y.shape[-1])
            y = unit(y, *scopes, "project", act=False)
            x = x + y if now == 1 and x.shape == y.shape else y
    return dense(unit(x, p, s, "head").mean((1, 2)), p["classifier"])


NETWORKS = {f.__name__: f for f in (vgg16, alexnet, squeezenet, mobilenet_v2)}


def hidden_layers(p, x):
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    for name in ("hidden1", "hidden2"):
        x = relu(dense(x, p[name]))
    return dense(x, p["classifier"])


def conv(x, layer, stride=1, padding=None, groups=1):
    kernel = layer["kernel"]
    pad = (kernel.shape[0] // 2 if padding is None else padding,) * 2
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
    windows = windows[:, ::stride, ::stride]
    if groups == 1:
        y = np.einsum("npqchw,hwco->npqo", windows, kernel, optimize=True)
    else:
        y = np.einsum("npqchw,hwc->npqc", windows, kernel[:, :, 0])
    return y + layer.get("bias", 0.0)


def norm(x, layer, stats):
    return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * layer["scale"] + layer["bias"]


def relu(x):
    return np.maximum(x, 0.0)


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def max_pool(x, size, ceil=False):
    """Max-pooling with stride 2; with `ceil`, the last window may extend beyond the image."""
    for axis in (1, 2):
        steps = (x.shape[axis] - size) / 2
        num = (math.ceil(steps) if ceil else math.floor(steps)) + 1
        take = [
            np.take(x, range(2 * i, min(2 * i + size, x.shape[axis])), axis) for i in range(num)
        ]
        x = np.stack([window.max(axis) for window in take], axis)
    return x


def adaptive_mean_pool(x, size):
    rows, columns = (
        [(math.floor(i * n / size), math.ceil((i + 1) * n / size)) for i in range(size)]
        for n in x.shape[1:3]
    )
    cells = [[x[:, a:b, c:d].mean((1, 2)) for c, d in columns] for a, b in rows]
    return np.moveaxis(np.array(cells), 2, 0)
