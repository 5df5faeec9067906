"""A ConvNeXt-like network and a small Vision Transformer with generated kernels.

    python examples/beyond_resnets.py

trains both on digits, in about a minute on two CPU cores.
"""

import flax.linen as nn
import jax
from _digits import digits, score, train

import mlg_jax


class ConvNeXt(nn.Module):
    """Blocks of a depthwise 7 x 7 convolution, LayerNorm and two dense layers."""

    width: int = 32

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.LayerNorm()(nn.Conv(self.width, (2, 2), 2)(x))
        for _ in range(2):
            y = nn.Conv(self.width, (7, 7), feature_group_count=self.width)(x)
            y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(y)))
            x = x + nn.Dense(self.width)(y)
        return nn.Dense(10)(nn.LayerNorm()(x.mean((1, 2))))


class VisionTransformer(nn.Module):
    """Patches of 2 x 2 pixels, one encoder block."""

    width: int = 64

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(self.width, (2, 2), 2)(x).reshape(len(x), -1, self.width)
        x += self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        y = nn.LayerNorm()(x)
        q, k, v = (nn.Dense(self.width)(y).reshape(*y.shape[:2], 4, -1) for _ in range(3))
        y = nn.dot_product_attention(q, k, v).reshape(x.shape)
        x += nn.Dense(self.width)(y)
        y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
        x += nn.Dense(self.width)(y)
        return nn.Dense(10)(nn.LayerNorm()(x.mean(1)))


# Level 2 alone: dense layers and depthwise kernels have no level 1.
NETWORKS = {
    "ConvNeXt": (ConvNeXt(), mlg_jax.GenerationSpec.from_bits(0, 8, 6, None, 6)),
    "Vision Transformer": (
        VisionTransformer(),
        mlg_jax.GenerationSpec.from_bits(0, 24, 6, None, 6),
    ),
}


def main(*, num_epochs=24):
    """Trains each network with plain and with generated kernels; accuracy and KB by name."""
    (images, labels), test = digits()
    results = {}
    for name, (plain, spec) in NETWORKS.items():
        models = {name: plain, f"{name}, generated": mlg_jax.generated(plain, spec, weight_bits=8)}
        for title, model in models.items():
            variables = jax.jit(model.init)(jax.random.key(0), images[:1])
            options = {"num_epochs": num_epochs, "learning_rate": 4e-3}
            variables = train(model, variables, images, labels, **options)
            results[title] = score(model, variables, *test)
    return results


if __name__ == "__main__":
    for name, (accuracy, kb) in main().items():
        print(f"{name:30} {accuracy:6.1%}  {kb:7.1f} KB")
