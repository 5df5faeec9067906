"""Candidates for a kernel: their rounding, errors, bits and hull against direct computation."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import GenerationSpec, fake_quantize, generate_kernel
from mlg_jax._convolution import to_layout
from mlg_jax._types import KernelShape, LayerGeometry
from mlg_jax.compress import AllocationSpec
from mlg_jax.kernels import rounded_kernel
from mlg_jax.quant import round_clipped

SHAPES = [
    KernelShape(12, 10, (3, 3)),
    KernelShape(10, 3, (3, 3)),
    KernelShape(12, 8, (1, 1)),
    KernelShape(12, 1, (3, 3)),
]
GRID = AllocationSpec(base_in=(0, 2), base_out=(0.25, 0.6), bits=(2, 4))


def kernel_of(shape):
    """A kernel with decaying singular values, like a trained one, and some large entries."""
    random = np.random.default_rng(0)
    kernel = random.standard_t(4, (shape.out_channels, shape.in_channels, shape.taps)) * 0.1
    scales = np.linspace(1.5, 0.2, shape.out_channels)[:, None, None]
    return (kernel * scales).astype(np.float32)


def projected(kernel, spec, shape):
    """Parameters from the closed-form projection, with clipped grids."""
    bound = spec.bind(LayerGeometry(shape=shape))
    return bound.project(to_layout(jnp.asarray(kernel), shape), clip=True)


def generated(factors, spec):
    """The kernel that a layer generates from its parameters."""
    q = {n: fake_quantize(jnp.asarray(v), getattr(spec, n)) for n, v in factors.items()}
    return generate_kernel(q["basis"], q.get("coeff_in"), q.get("coeff_out"))


def relative(kernel, target):
    target = np.asarray(target, np.float64)
    return np.sum((np.asarray(kernel, np.float64) - target) ** 2) / np.sum(target**2)


def specs_of(shape, grid):
    """Every generation spec in the grid, by the shapes and bits of its factors."""
    rank = min(shape.out_channels, shape.in_channels * shape.taps)
    bases = [0, *(round(s * rank) for s in grid.base_out)]
    found = {}
    for b_in, b_out, *bits in itertools.product(grid.base_in, bases, *[grid.bits] * 3):
        spec = GenerationSpec.from_bits(b_in, b_out, *bits)
        shapes = spec.resolve(shape)
        if shapes is not None:
            present = [b if s else None for b, s in zip(bits, shapes, strict=True)]
            found.setdefault((shapes, *present), spec)
    return found


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("scale", [0.05, 2.0])
def test_rounding_finds_the_nearest_point_of_the_best_grid(bits, scale):
    values = np.random.default_rng(1).standard_normal((9, 5)) * scale
    found = round_clipped(values, bits)
    end = np.max(np.abs(found))
    grid = end * np.linspace(-1.0, 1.0, 2**bits)
    nearest = grid[np.argmin(np.abs(values[..., None] - grid), axis=-1)]
    assert end < 1.0
    np.testing.assert_allclose(found, nearest, rtol=1e-12, atol=1e-12)
    for share in (1.0, 0.7, 0.4):
        other = min(share * np.max(np.abs(values)), 0.95) * np.linspace(-1.0, 1.0, 2**bits)
        distances = np.min(np.abs(values[..., None] - other), axis=-1)
        assert np.sum((found - values) ** 2) <= np.sum(distances**2) * (1 + 1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parameters_generate_the_rounded_kernel(shape):
    kernel = kernel_of(shape)
    spec = GenerationSpec.from_bits(2, 6, 3, 6, 2)
    wanted = generated(projected(kernel, spec, shape), spec)
    # arctanh followed by tanh moves an entry by about 1e-7 of its grid, rarely across a midpoint.
    assert relative(rounded_kernel(kernel, spec, shape), wanted) < 1e-5


def test_parameters_of_other_quantisers_generate_the_kernel():
    shape = SHAPES[0]
    kernel = kernel_of(shape)
    spec = GenerationSpec.from_bits(9, 11, None, None, 16)  # one base fewer than the full rank
    assert relative(generated(projected(kernel, spec, shape), spec), kernel) < 0.02
    one_bit = GenerationSpec.from_bits(2, 6, 1, 1, 1)
    assert relative(generated(projected(kernel, one_bit, shape), one_bit), kernel) < 1.0


def test_clipped_grids_are_better_than_whole_ones():
    """At 2 bits, the projection without clipping has a larger error than a kernel of zeros."""
    shape = KernelShape(48, 48, (3, 3))
    kernel = kernel_of(shape)
    spec = GenerationSpec.from_bits(0, 24, 2, 2, 2)
    assert relative(rounded_kernel(kernel, spec, shape), kernel) < 0.7


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errors_and_bits_are_those_of_the_generated_kernel(shape):
    kernel = kernel_of(shape)
    found = GRID.grid.candidates(kernel, shape)
    assert found and found[0].num_bits == GRID.smallest_bits(shape)
    for candidate in found:
        spec = candidate.generation
        wanted = relative(rounded_kernel(kernel, spec, shape), kernel)
        assert candidate.error == pytest.approx(wanted, abs=1e-5)
        shapes = spec.resolve(shape)._asdict().items()
        bits = sum(math.prod(s) * getattr(spec, n).bits for n, s in shapes if s is not None)
        assert candidate.num_bits == bits


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_candidates_are_best_for_some_price_of_a_bit_and_none_is_missing(shape):
    kernel = kernel_of(shape)
    everything = []
    for (shapes, *bits), spec in specs_of(shape, GRID).items():
        sizes = [np.prod(s) * b for s, b in zip(shapes, bits, strict=True) if s is not None]
        everything.append((int(sum(sizes)), relative(rounded_kernel(kernel, spec, shape), kernel)))
    points = np.array(everything)
    found = np.array([(c.num_bits, c.error) for c in GRID.grid.candidates(kernel, shape)])
    used = set()
    for price in np.geomspace(1e-8, 1.0, 4000):
        costs = found @ (price, 1.0)
        assert costs.min() == pytest.approx((points @ (price, 1.0)).min(), abs=1e-5)
        used.add(int(np.argmin(costs)))
    assert len(used) == len(found)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"base_in": ()}, ValueError, r"`base_in` must have at least one choice; got \(\)"),
        ({"base_in": (-1,)}, ValueError, "`base_in` must be an integer >= 0; got -1"),
        ({"base_out": (1.5,)}, ValueError, r"`base_out` must be a number in \(0.0, 1.0\]; got 1.5"),
        ({"bits": [2]}, TypeError, "`bits` must be tuple; got"),
        ({"bits": (1,)}, ValueError, r"`bits` must be an integer in \[2, 16\]; got 1"),
        ({"weight_bits": 17}, ValueError, r"`weight_bits` must be an integer in \[1, 16\]"),
        ({"num_measured": 1}, ValueError, "`num_measured` must be an integer >= 2; got 1"),
        ({"num_images": 0}, ValueError, "`num_images` must be an integer >= 1; got 0"),
    ],
)
def test_bad_grids(options, error, message):
    with pytest.raises(error, match=message):
        AllocationSpec(**options)
