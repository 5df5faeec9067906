"""A plain Flax NNX model: generated, projected, trained, compressed, packed and served.

    python examples/nnx_resnet.py

takes about a minute on two CPU cores.
"""

import _serve
import jax
import numpy as np
import optax
from _digits import digits, score
from flax import nnx

import mlg_jax
import mlg_jax.nnx
from mlg_jax.compress import AllocationSpec, compress


class Block(nnx.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, in_features, features, strides, *, rngs):
        options = {"use_bias": False, "rngs": rngs}
        self.conv1 = nnx.Conv(in_features, features, (3, 3), strides, **options)
        self.conv2 = nnx.Conv(features, features, (3, 3), **options)
        self.norm1 = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        self.norm2 = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        self.shortcut = nnx.Conv(in_features, features, (1, 1), strides, **options)

    def __call__(self, x):
        y = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nnx.Module):
    """Two blocks, `[N, H, W, 1]` to logits `[N, 10]`."""

    def __init__(self, *, rngs):
        self.stem = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        sizes = ((16, 32, 2), (32, 48, 2))
        self.blocks = nnx.List([Block(*size, rngs=rngs) for size in sizes])
        self.head = nnx.Linear(48, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def train(model, images, labels, *, num_epochs, learning_rate=2e-3, batch_size=64):
    """Adam on cross-entropy with NNX's own tools; updates the model in place."""
    steps = len(images) // batch_size
    schedule = optax.cosine_decay_schedule(learning_rate, num_epochs * steps)
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss_fn(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss_fn)(model))

    model.train()
    rng = np.random.default_rng(0)
    for _ in range(num_epochs):
        order = rng.permutation(len(images))[: steps * batch_size]
        for rows in order.reshape(steps, batch_size):
            step(model, optimizer, images[rows], labels[rows])
    model.eval()


def main(folder, *, num_epochs=4, target_kb=16.0):
    """Runs every step; returns accuracy and KB by network name."""
    (images, labels), test = digits()
    teacher = ResNet(rngs=nnx.Rngs(0))
    train(teacher, images, labels, num_epochs=num_epochs)
    results = {"trained": score(*mlg_jax.nnx.to_linen(teacher), *test)}

    small = generated(teacher)
    results["projected"] = score(*mlg_jax.nnx.to_linen(small), *test)
    train(small, images, labels, num_epochs=2, learning_rate=1e-3)
    network, variables = mlg_jax.nnx.to_linen(small)
    results["generated, two epochs"] = score(network, variables, *test)
    _serve.save(folder / "generated.mlg", network, variables, test[0][:16])

    choices = AllocationSpec(base_in=(0, 2), base_out=(1 / 4, 1 / 2), bits=(4, 8), num_measured=2)
    fitted = compress(
        *mlg_jax.nnx.to_linen(teacher),
        images[:256],
        target_kb=target_kb,
        key=jax.random.key(2),
        allocation=choices,
    )
    results["compressed"] = score(fitted.model, fitted.variables, *test)
    _serve.save(folder / "compressed.mlg", fitted.model, fitted.variables, test[0][:16])
    return results


def generated(model):
    """A copy with generated kernels, projected from the model's own: one line."""
    return mlg_jax.nnx.generate(model, mlg_jax.GenerationSpec.from_bits(2, 16, 4, 6, 4))


def make_model(name):
    """The model for a packed file: with generated layers if the file is `generated.mlg`."""
    model = ResNet(rngs=nnx.Rngs(1))
    return mlg_jax.nnx.to_linen(generated(model) if name == "generated" else model)[0]


if __name__ == "__main__":
    _serve.run(main, make_model)
