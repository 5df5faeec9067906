"""Residual networks for CIFAR and ImageNet."""

from typing import Any

from flax import linen as nn

from mlg_jax._types import Array
from mlg_jax.layers import global_mean_pool, max_pool
from mlg_jax.models._blocks import BasicBlock, BottleneckBlock
from mlg_jax.models._layers import Layers
from mlg_jax.models._parts import check_images, image_shape


class ResNet(nn.Module):
    """A post-activation residual network, `[N, H, W, C]` to logits `[N, num_classes]`.

    Attributes:
        stage_sizes: blocks in each stage; every stage but the first halves the image.
        block: `BasicBlock` or `BottleneckBlock`.
        num_classes: number of logits.
        stem: `cifar` (3 x 3, stride 1, classifier without bias) or `imagenet` (7 x 7, stride 2,
            3 x 3 max-pooling with stride 2, classifier with bias).
        base_channels: channels of the stem and the first stage; doubled by every later stage.
        layers: the factories of its layers, and the policy for residuals.
        spec: the `ModelSpec` that the model was created from; None if it was built directly.

    Reference: https://arxiv.org/abs/1512.03385.
    """

    stage_sizes: tuple[int, ...]
    block: type[BasicBlock] | type[BottleneckBlock]
    num_classes: int
    layers: Layers
    stem: str = "cifar"
    base_channels: int = 64
    spec: Any = None

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """The shape of one image at the resolution that the stem is designed for."""
        return image_shape(self.stem)

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Logits of `x`, `[N, H, W, C]`, floating, normalised."""
        check_images(x, self.stem)
        x = self.layers.remat.stem(lambda model, x: model._stem(x, train))(self, x)
        for stage, num_blocks in enumerate(self.stage_sizes):
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                block = self.block(
                    channels=self.base_channels * 2**stage,
                    strides=(stride, stride),
                    layers=self.layers,
                    name=f"stage{stage + 1}_block{index + 1}",
                )
                x = self.layers.block(block, x, train=train)
        features = global_mean_pool(x)
        classifier = self.layers.dense(
            self.num_classes, use_bias=self.stem == "imagenet", name="classifier"
        )
        return classifier(features, train=train)

    def _stem(self, x: Array, train: bool) -> Array:
        options: dict[str, Any] = (
            {} if self.stem == "cifar" else {"kernel_size": (7, 7), "strides": (2, 2)}
        )
        x = self.layers.conv_norm_act(x, self.base_channels, "stem_conv", train=train, **options)
        return x if self.stem == "cifar" else max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
