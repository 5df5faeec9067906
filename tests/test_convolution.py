"""Convolutions on a CPU, against the definition and XLA's own gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mlg_jax import _convolution_cpu
from mlg_jax._convolution import convolve
from mlg_jax._convolution_cpu import Window, convolve_depthwise, weight_gradient, xla_convolve
from mlg_jax._platform import traced_for
from tests import _oracles
from tests._tolerances import relative_error

WINDOWS = [
    Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    Window((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    Window((2, 3), (2, 1), ((0, 2), (1, 0)), (1, 2)),
    Window((2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    Window((1, 1), (2, 2), ((1, 0), (0, 1)), (1, 1)),  # a border of zeros, then every second
]
SLICES = [1, 700, 5_000, 2**22]  # bytes of patches: single rows, bands, a few images, all


def arrays(window, out_channels, in_channels=None):
    """An input with 3 channels and 5 images of 9 x 8, a kernel and a cotangent."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(5, 9, 8, 3)))
    kernel = jnp.asarray(rng.normal(size=(*window.size, in_channels or 3, out_channels)))
    y = jax.eval_shape(lambda: xla_convolve(x, kernel, window, 3 // kernel.shape[2]))
    return x, kernel, jnp.asarray(rng.normal(size=y.shape))


@pytest.fixture
def nothing_is_small(monkeypatch):
    monkeypatch.setattr(_convolution_cpu, "_SMALL_BYTES", 0)


@pytest.mark.parametrize("patch_bytes", SLICES)
@pytest.mark.parametrize("window", WINDOWS)
def test_products_equal_the_oracle_and_xlas_gradients(
    x64, monkeypatch, nothing_is_small, window, patch_bytes
):
    monkeypatch.setattr(_convolution_cpu, "_PATCH_BYTES", patch_bytes)
    x, kernel, dy = arrays(window, 4)
    options = {"strides": window.strides, "padding": window.padding, "dilation": window.dilation}
    y, vjp = jax.vjp(lambda x, kernel: convolve(x, kernel, **options), x, kernel)
    assert relative_error(y, _oracles.convolve(x, kernel, **options)) < 1e-12
    expected = jax.vjp(lambda x, kernel: xla_convolve(x, kernel, window), x, kernel)[1](dy)
    for ours, other in zip(vjp(dy), expected, strict=True):
        assert relative_error(ours, other) < 1e-12
    program = str(jax.make_jaxpr(weight_gradient, static_argnums=2)(x, dy, window))
    assert "dot_general" in program and "conv_general_dilated" not in program


@pytest.mark.parametrize("window", WINDOWS)
def test_depthwise_equals_the_oracle_and_xlas_gradients(x64, monkeypatch, window):
    monkeypatch.setattr(_convolution_cpu, "_PATCH_BYTES", 4_000)  # two images and a remainder
    x, kernel, dy = arrays(window, 3, 1)
    y, vjp = jax.vjp(lambda x, kernel: convolve_depthwise(x, kernel, window), x, kernel)
    expected = _oracles.convolve(x, kernel, window.strides, window.padding, window.dilation, 3)
    assert relative_error(y, expected) < 1e-12
    xlas = jax.vjp(lambda x, kernel: xla_convolve(x, kernel, window, 3), x, kernel)[1](dy)
    for ours, other in zip(vjp(dy), xlas, strict=True):
        assert relative_error(ours, other) < 1e-12


@pytest.mark.parametrize("groups", [1, 3])
def test_second_order(x64, nothing_is_small, groups):
    window = WINDOWS[1]
    x, kernel, _ = arrays(window, 3, 3 // groups)
    options = {"strides": window.strides, "padding": window.padding, "groups": groups}
    check_grads(lambda x, kernel: convolve(x, kernel, **options), (x, kernel), 2, modes=["rev"])


def test_weight_gradient_copies_neither_input_nor_cotangent():
    window = WINDOWS[0]
    x = jax.ShapeDtypeStruct((64, 32, 32, 64), jnp.float32)  # 16 MiB
    compiled = jax.jit(weight_gradient, static_argnums=2).lower(x, x, window).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 10 * 2**20


@pytest.mark.parametrize("groups", [1, 4])
def test_programs_for_a_gpu_keep_xlas_convolution(groups):
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4 // groups, 4))
    with traced_for("gpu"):
        program = jax.make_jaxpr(lambda x, k: convolve(x, k, groups=groups))(x, kernel)
    assert [equation.primitive.name for equation in program.eqns] == ["conv_general_dilated"]
