"""A small convolutional network for CIFAR-10 that is trained within minutes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from mlg_jax._checks import check_floating
from mlg_jax._types import Array
from mlg_jax.kernels import is_plain
from mlg_jax.layers import layer_records, max_pool
from mlg_jax.models._layers import Layers
from mlg_jax.models._parts import check_images, flatten_channels_first, image_shape, scaled

GROUP_CHANNELS = (64, 256, 256)
PATCH_SIZE = 2  # of the first convolution
LOGIT_SCALE = 1 / 9
MIN_SIZE = 31  # of an image: three poolings by two and one by three after a 2 x 2 convolution
_EPSILON = 5e-4  # added to the variances that the first convolution divides by
_STATISTICS = {"momentum": 0.6, "epsilon": 1e-12}
_DEFAULT_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # as in PyTorch


class CifarCNN(nn.Module):
    """Eight layers for images of 32 x 32, `[N, H, W, C]` to `[N, num_classes]`.

    A 2 x 2 convolution with a bias whitens patches (`whiten` takes its kernel from images); three
    groups of two 3 x 3 convolutions follow, each with a norm without scale and GELU, the first of a
    group with 2 x 2 max-pooling before its norm; then 3 x 3 max-pooling and a dense layer without
    bias, whose logits are divided by 9. 3 x 3 kernels start as a partial identity.

    Attributes:
        num_classes: number of logits.
        layers: the factories of its layers, whose activation is replaced by GELU; for `remat`, a
            group is a block.
        stem: must be `cifar`.
        width: factor on the channel counts of the groups.
        spec: the `ModelSpec` that the model was created from; None if it was built directly.

    Reference: https://arxiv.org/abs/2404.00498 ("airbench94").
    """

    num_classes: int
    layers: Layers
    stem: str = "cifar"
    width: float = 1.0
    spec: Any = None

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """The shape of one image at the resolution that the network is designed for."""
        return image_shape(self.stem)

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Logits of `x`, `[N, H, W, C]`, floating, normalised, at least 31 x 31."""
        if self.stem != "cifar":
            raise ValueError(f"`stem` must be 'cifar' for cifar_cnn; got {self.stem!r}.")
        check_images(x, self.stem, MIN_SIZE)
        patch = PATCH_SIZE**2 * x.shape[-1]
        whiten = self.layers.conv(
            2 * patch, (PATCH_SIZE, PATCH_SIZE), padding="VALID", use_bias=True, name="whiten"
        )
        x = gelu(whiten(x, train=train))
        for index, channels in enumerate(GROUP_CHANNELS, 1):
            group = _Group(scaled(channels, self.width), self.layers, name=f"group{index}")
            x = self.layers.block(group, x, train=train, is_sparse=False)
        x = flatten_channels_first(max_pool(x, (3, 3), (3, 3)))
        classifier = self.layers.dense(self.num_classes, use_bias=False, name="classifier")
        return classifier(x, train=train) * LOGIT_SCALE

    def initialized(self, variables: Any, images: Array) -> dict[str, Any]:
        """Initial variables, with the kernel of `whiten` computed from images.

        If that kernel is generated or quantised, the variables are returned unchanged.

        Args:
            variables: from `init`.
            images: `[N, H, W, C]`, normalised as for training; a few thousand suffice.
        """
        params = dict(variables["params"])
        records = layer_records(self, (1, *images.shape[1:]))
        if not any(r.name == "whiten" and r.kernel and is_plain(r.kernel.spec) for r in records):
            return dict(variables)
        kernel = whitening_kernel(images)
        params["whiten"] = {**params["whiten"], "kernel": kernel}
        return {**variables, "params": params}


class _Group(nn.Module):
    """`act(norm(conv(act(norm(pool(conv(x)))))))`."""

    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        for index in (1, 2):
            conv = self.layers.conv(
                self.features,
                (3, 3),
                padding=1,
                use_bias=self.layers.norm is None,
                kernel_init=partial_identity,
                name=f"conv{index}",
            )
            x = conv(x, train=train)
            if index == 1:
                x = max_pool(x, (2, 2), (2, 2))
            if self.layers.norm is not None:
                # Scaling by a positive number and pooling may change places, so folding is exact.
                norm = functools.partial(self.layers.norm, use_scale=False, **_STATISTICS)
                x = norm(name=f"norm{index}", follows=f"conv{index}")(x, train=train)
            x = gelu(x)
        return x


def gelu(x: Array) -> Array:
    """`x Phi(x)` with the exact error function."""
    return nn.gelu(x, approximate=False)


def partial_identity(key: Any, shape: Any, dtype: Any = jnp.float32) -> Array:
    """An initialiser for `[h, w, in, out]`: the first `in` channels are passed on unchanged.

    Further output channels have PyTorch's default, uniform within `1 / sqrt(h w in)`.
    """
    height, width, num_in, num_out = shape
    kernel = _DEFAULT_INIT(key, shape, dtype)
    num_same = min(num_in, num_out)
    identity = jnp.eye(num_in, num_same, dtype=dtype)
    same = jnp.zeros((height, width, num_in, num_same), dtype)
    same = same.at[height // 2, width // 2].set(identity)
    return kernel.at[..., :num_same].set(same)


def whitening_kernel(images: Array) -> Array:
    """Kernel `[2, 2, C, 8 C]` that whitens patches of 2 x 2, and its negative.

    Its columns are the eigenvectors of the patches' second moments, divided by the root of the
    eigenvalue plus 5e-4, by falling eigenvalue.

    Args:
        images: `[N, H, W, C]`, floating, normalised.
    """
    check_floating("images", images)
    patches = np.asarray(_patches(jnp.asarray(images)), np.float64)
    values, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
    scaled_vectors = (vectors / np.sqrt(values + _EPSILON))[:, ::-1]
    both = np.concatenate([scaled_vectors, -scaled_vectors], axis=1)
    kernel = both.reshape(images.shape[-1], PATCH_SIZE, PATCH_SIZE, -1).transpose(1, 2, 0, 3)
    return jnp.asarray(kernel, images.dtype)


@jax.jit
def _patches(images: Array) -> Array:
    """All patches of 2 x 2, `[N (H - 1) (W - 1), 4 C]`, channels first."""
    size = (PATCH_SIZE, PATCH_SIZE)
    layout = ("NHWC", "HWIO", "NHWC")
    patches = lax.conv_general_dilated_patches(
        images, size, (1, 1), "VALID", dimension_numbers=layout
    )
    return patches.reshape(-1, patches.shape[-1])
