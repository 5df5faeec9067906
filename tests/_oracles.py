"""Independent definitions in float64 NumPy, written from the papers and not from the package."""

import numpy as np


def quantize_unit(u, bits):
    """Rounds [0, 1] to 2**bits levels, half to even."""
    n = 2.0**bits - 1
    return np.round(u * n) / n


def quantize(x, bits, scheme):
    """Forward value of each weight scheme."""
    x = np.asarray(x, np.float64)
    if bits == 1 and scheme in ("dorefa", "dorefa_sym"):
        mean = np.mean(np.abs(x))
        value = np.sign(x / mean) * mean
        return value if scheme == "dorefa_sym" else (value + mean) / 2
    t = np.tanh(x)
    r = np.max(np.abs(t))
    if scheme == "dorefa_sym":
        return quantize_unit(t / (2 * r) + 0.5, bits) * 2 * r - r
    if scheme in ("dorefa", "ewgs"):
        return quantize_unit(t / (2 * r) + 0.5, bits)
    if scheme == "dorefa_pos":
        return quantize_unit((t + r) / (2 * r), bits) * 2 * r
    assert scheme == "qnn"
    span = np.ptp(x)
    return quantize_unit((x - x.min()) / span, bits) * span + x.min()


def unrounded(x, bits, scheme):
    """The re-parametrised value of an entry that partial quantisation leaves exact."""
    x = np.asarray(x, np.float64)
    if bits == 1 and scheme in ("dorefa", "dorefa_sym"):
        return x if scheme == "dorefa_sym" else (x + np.mean(np.abs(x))) / 2
    t = np.tanh(x)
    r = np.max(np.abs(t))
    return {
        "dorefa_sym": t,
        "dorefa": t / (2 * r) + 0.5,
        "ewgs": t / (2 * r) + 0.5,
        "dorefa_pos": t + r,
        "qnn": x,
    }[scheme]


def d_reparametrisation(x, bits, scheme):
    """Derivative of `unrounded`, its per-tensor constants held fixed."""
    x = np.asarray(x, np.float64)
    if bits == 1 and scheme in ("dorefa", "dorefa_sym"):
        return np.full_like(x, 1.0 if scheme == "dorefa_sym" else 0.5)
    d_tanh = 1 - np.tanh(x) ** 2
    r = np.max(np.abs(np.tanh(x)))
    return {
        "dorefa_sym": d_tanh,
        "dorefa": d_tanh / (2 * r),
        "ewgs": d_tanh / (2 * r),
        "dorefa_pos": d_tanh,
        "qnn": np.ones_like(x),
    }[scheme]


def ct_scale(x, bits, scheme):
    """Derivative of the value with respect to the rounded unit: what multiplies the cotangent."""
    x = np.asarray(x, np.float64)
    if bits == 1:
        mean = np.mean(np.abs(x))
        return mean if scheme == "dorefa_sym" else mean / 2
    if scheme in ("dorefa", "ewgs"):
        return 1.0
    if scheme == "qnn":
        return np.ptp(x)
    return 2 * np.max(np.abs(np.tanh(x)))


def generate(basis, coeff_in, coeff_out):
    """W[o, c, k] by explicit sums."""
    if coeff_in is None:
        rows = np.asarray(basis, np.float64)
    else:
        rows = np.stack([u @ b for u, b in zip(coeff_in, basis, strict=True)])
    if coeff_out is None:
        return rows
    num_bases = rows.shape[0]
    return (np.asarray(coeff_out) @ rows.reshape(num_bases, -1)).reshape(
        len(coeff_out), *rows.shape[1:]
    )


def convolve(x, kernel, strides, padding, dilation=(1, 1), groups=1):
    """Cross-correlation of [N, H, W, C] with [kh, kw, C / groups, O], one tap at a time."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), *padding, (0, 0)))
    kernel = np.asarray(kernel, np.float64)
    height, width, in_channels, out_channels = kernel.shape
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, (height, width), strict=True)]
    size = [(n - s) // t + 1 for n, s, t in zip(x.shape[1:3], spans, strides, strict=True)]
    y = np.zeros((x.shape[0], *size, out_channels))
    per_group = out_channels // groups
    for i in range(height):
        for j in range(width):
            rows = slice(i * dilation[0], i * dilation[0] + strides[0] * (size[0] - 1) + 1)
            cols = slice(j * dilation[1], j * dilation[1] + strides[1] * (size[1] - 1) + 1)
            patch = x[:, rows, cols][:, :: strides[0], :: strides[1]]
            for g in range(groups):
                ins = slice(g * in_channels, (g + 1) * in_channels)
                outs = slice(g * per_group, (g + 1) * per_group)
                y[..., outs] += patch[..., ins] @ kernel[i, j, :, outs]
    return y
