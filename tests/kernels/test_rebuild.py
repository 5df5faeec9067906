"""Kernels that are rebuilt in both passes and never saved: values, gradients, residuals, bytes."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from mlg_jax import generate_kernel
from mlg_jax._convolution import convolve, from_layout, to_layout
from mlg_jax._types import KernelShape, LayerGeometry
from tests import _oracles
from tests._models import apply_generated
from tests._tolerances import relative_error

SHAPE = KernelShape(96, 64, (3, 3))
LAYER = LayerGeometry(kind="conv", shape=SHAPE, padding=((1, 1), (1, 1)))
PRODUCT = functools.partial(convolve, padding=((1, 1), (1, 1)))


def factors(seed=0, num_bases=8, base_in=2):
    rng = np.random.default_rng(seed)
    shapes = {
        "basis": (num_bases, base_in, SHAPE.taps),
        "coeff_in": (num_bases, SHAPE.in_channels, base_in),
        "coeff_out": (SHAPE.out_channels, num_bases),
    }
    return {n: jnp.asarray(rng.normal(size=s) / 8, jnp.float32) for n, s in shapes.items()}


def build(f):
    return to_layout(generate_kernel(f["basis"], f["coeff_in"], f["coeff_out"]), SHAPE)


def layer(f, x):
    return apply_generated("generate", f, x, LAYER)


def naive(f, x):
    return PRODUCT(x, build(f))


def stack(layer, depth=6):
    """A loss over a chain of layers; inputs are sliced because the channel counts differ."""

    def loss(fs, x):
        for f in fs:
            x = jnp.tanh(layer(f, x[..., : SHAPE.in_channels]))
        return jnp.sum(x * x)

    return loss, [factors(i) for i in range(depth)]


def on_arrays(fn):
    """Converts the arguments to JAX arrays, because `check_grads` passes NumPy arrays."""
    return lambda *args: fn(*jax.tree.map(jnp.asarray, args))


def image(positions=4):
    rng = np.random.default_rng(9)
    return jnp.asarray(rng.normal(size=(1, positions, positions, SHAPE.in_channels)), jnp.float32)


def residual_sizes(fn, *args):
    return [r.size for r in jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(fn, *a)[1], *args))]


def test_values_and_gradients_equal_plain_autodiff():
    (loss, fs), (plain, _) = stack(layer), stack(naive)
    got, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(fs, image()) for f in (loss, plain))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) < 1e-6


def test_gradients_numerically(x64):
    f = {n: v.astype(jnp.float64) for n, v in factors().items()}
    x = image(3).astype(jnp.float64)
    jax.test_util.check_grads(on_arrays(layer), (f, x), order=2, modes=["rev"], rtol=1e-5)


def test_no_kernel_among_the_residuals():
    f, x = factors(), image()
    assert SHAPE.size in residual_sizes(naive, f, x), "plain autodiff keeps the kernel"
    allowed = {v.size for v in f.values()} | {x.size}
    assert set(residual_sizes(layer, f, x)) <= allowed


def test_compiled_program_keeps_fewer_bytes_than_one_kernel_a_layer():
    temporary = {}
    for name, run in (("naive", naive), ("built", layer)):
        loss, fs = stack(run)
        compiled = jax.jit(jax.grad(loss)).lower(fs, image()).compile()
        temporary[name] = compiled.memory_analysis().temp_size_in_bytes
    kernel_bytes = 4 * SHAPE.size
    assert temporary["naive"] > 6 * kernel_bytes
    assert temporary["naive"] - temporary["built"] > 3 * kernel_bytes


def test_kernels_are_not_built_before_their_inputs_are_there():
    loss, fs = stack(layer)
    compiled = jax.jit(loss).lower(fs, image()).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 4 * SHAPE.size


def test_a_broken_sample_stays_alone():
    f, x = factors(), jnp.concatenate([image().at[0, 0, 0, 0].set(jnp.nan), image()])
    y = layer(f, x)
    assert np.any(np.isnan(y[0])) and np.all(np.isfinite(y[1]))


def test_bfloat16_input_keeps_float32_factors():
    f, x = factors(), image().astype(jnp.bfloat16)
    y, vjp = jax.vjp(layer, f, x)
    d_f, d_x = vjp(jnp.ones_like(y))
    assert y.dtype == d_x.dtype == jnp.bfloat16
    assert {g.dtype for g in d_f.values()} == {jnp.dtype(jnp.float32)}


def test_under_vmap_and_scan():
    f, xs = factors(), jnp.stack([image(), 2 * image()])
    gradient = jax.grad(lambda f, x: jnp.sum(layer(f, x) ** 2))
    expected = jnp.stack([gradient(f, x)["basis"] for x in xs])
    mapped = jax.vmap(gradient, (None, 0))(f, xs)["basis"]
    scanned = jax.lax.scan(lambda c, x: (c, gradient(f, x)["basis"]), 0, xs)[1]
    assert relative_error(mapped, expected) < 1e-5
    assert relative_error(scanned, expected) < 1e-5


@pytest.mark.parametrize(
    "strides, padding, dilation, groups",
    [
        ((1, 1), ((1, 1), (1, 1)), (1, 1), 1),
        ((2, 2), ((1, 1), (1, 1)), (1, 1), 1),
        ((2, 1), ((0, 2), (1, 0)), (1, 2), 2),
        ((1, 1), ((1, 1), (1, 1)), (1, 1), 4),
    ],
)
def test_convolution_equals_the_oracle(x64, strides, padding, dilation, groups):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 8, 7, 4)), rng.normal(size=(3, 2, 4 // groups, 8))
    options = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    y = convolve(jnp.asarray(x), jnp.asarray(kernel), **options)
    assert relative_error(y, _oracles.convolve(x, kernel, **options)) < 1e-12


@pytest.mark.parametrize("shape", [SHAPE, KernelShape(5, 7, (2, 3)), KernelShape(5, 7)])
def test_layout_round_trip(shape):
    size = shape.out_channels, shape.in_channels, shape.taps
    kernel = jnp.arange(shape.size, dtype=jnp.float32).reshape(size)
    stored = to_layout(kernel, shape)
    assert stored.shape == shape.layout and np.array_equal(from_layout(stored), kernel)
    if shape.window == (2, 3):
        assert stored[1, 2, 6, 4] == kernel[4, 6, 5]
