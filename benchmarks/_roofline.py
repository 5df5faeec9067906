"""Estimated time of a program that was compiled for a GPU: a roofline, kernel by kernel."""

import dataclasses
import math
import re

from mlg_jax.memory._schedule import num_bytes

BANDWIDTH_SHARE = 0.85  # of the peak, that large kernels reach
TENSOR_SHARE = 0.6  # of the peak, that library convolutions and products reach
GROUPED_FLOPS = 30e12  # of grouped convolutions with few channels per group; a guess
LAUNCH_SECONDS = 2e-6


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Sums over the kernels of a program."""

    seconds: float
    num_kernels: int
    bytes: float
    flops: float  # of library calls; those inside fusions are not counted


def estimate(program):
    """Estimates the time of a `TargetProgram`.

    A kernel takes `max(bytes / bandwidth, FLOPs / rate)` and a launch. Its bytes are those of its
    operands and results, once each.
    """
    shapes = {i.name: i.shape for i in program.schedule.instructions}
    target, seconds, total_bytes, total_flops = program.target, 0.0, 0.0, 0.0
    for kernel in program.schedule.kernels:
        moved = _without_workspace(kernel.shape)
        moved += sum(_without_workspace(shapes.get(name, "")) for name in set(kernel.operands))
        flops, rate = _work(kernel, shapes, target)
        memory = moved / (BANDWIDTH_SHARE * target.bandwidth)
        seconds += max(memory, flops / rate) + LAUNCH_SECONDS
        total_bytes, total_flops = total_bytes + moved, total_flops + flops
    return Estimate(seconds, len(program.schedule.kernels), total_bytes, total_flops)


def _without_workspace(shape):
    return num_bytes(re.sub(r"[su]8\[\d{6,}\]", "", shape))


def _work(kernel, shapes, target):
    """FLOPs of a library call, and the rate at which it computes them."""
    rate = TENSOR_SHARE * target.tensor_flops
    if "cudnn" not in kernel.target and "cublas" not in kernel.target:
        return 0.0, rate
    dtype, out = _first(kernel.shape)
    operands = [_first(shapes[name])[1] for name in kernel.operands[:2]]
    if dtype == "f32":
        rate /= 2  # TF32
    if "cublas" in kernel.target:
        sizes = (math.prod(s) for s in (out, *operands))
        return 2 * math.sqrt(math.prod(sizes)), rate
    window = re.search(r"size=([\dx]+)", kernel.text)
    taps = math.prod(map(int, window.group(1).split("x"))) if window else 1
    if re.search(r"feature_group_count=(?!1\b)\d+", kernel.text):
        rate = GROUPED_FLOPS
    if "Filter" in kernel.target:
        return 2 * math.prod(operands[1]) * taps * out[-1], rate
    if "Input" in kernel.target:
        return 2 * math.prod(operands[0]) * taps * out[-1], rate
    return 2 * math.prod(out) * taps * operands[1][-1], rate


def _first(shape):
    """Dtype and sizes of the first array of a shape."""
    dtype, sizes = re.search(r"(\w+)\[([\d,]*)\]", shape).groups()
    return dtype, [int(n) for n in sizes.split(",") if n]
