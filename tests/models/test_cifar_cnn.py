"""The network of https://arxiv.org/abs/2404.00498."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import create_model
from mlg_jax.models.cifar_cnn import partial_identity, whitening_kernel


def test_parameters_and_whitened_patches():
    model = create_model("cifar_cnn", num_classes=10)
    images = jax.random.normal(jax.random.key(0), (64, 32, 32, 3))
    images = images + images[..., :1]  # correlated channels
    variables = model.initialized(jax.jit(model.init)(jax.random.key(1), images[:1]), images)
    convs = 24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == 9 * convs + 12 * 24 + 24 + 2 * (64 + 256 + 256) + 2560
    y = jax.lax.conv_general_dilated(
        images,
        whitening_kernel(images)[..., :12],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ).reshape(-1, 12)
    np.testing.assert_allclose(y.T @ y / len(y), np.eye(12), atol=5e-3)
    assert model.apply(variables, images[:2]).shape == (2, 10)


def test_partial_identity_passes_channels_on():
    x = jax.random.normal(jax.random.key(0), (1, 5, 5, 3))
    kernel = partial_identity(jax.random.key(1), (3, 3, 3, 7))
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_array_equal(y[..., :3], x)
    assert jnp.std(kernel[..., 3:]) > 0


@pytest.mark.bad_input
def test_only_small_images():
    model = create_model("cifar_cnn", num_classes=10, stem="imagenet")
    with pytest.raises(ValueError, match="`stem` must be 'cifar'"):
        model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
