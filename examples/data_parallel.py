"""Data-parallel training with `jax.shard_map` and synchronised batch normalisation.

    python examples/data_parallel.py

splits every batch over four devices (on a machine with one CPU, four virtual ones) and compares
the result of ten steps with that of one device.
"""

import functools
import os

NUM_DEVICES = 4
FLAG = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}"

import flax.linen as nn  # noqa: E402 after the flags
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from _digits import digits  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from mlg_jax import GenerationSpec, layers  # noqa: E402

# Neither quantised nor with ReLU, whose derivative jumps: both can amplify differences in the last
# bits, which come from the order of summation.
SPEC = GenerationSpec(2, 12)


class Network(nn.Module):
    """Generated convolutions, with norms whose statistics cover the batch on all devices."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        for features in (16, 32, 32):
            x = layers.Conv(features, (3, 3), use_bias=False, kernel=SPEC)(x)
            x = layers.BatchNorm(momentum=0.9, axis_name=self.axis_name)(x)
            x = nn.silu(x)
        return layers.Dense(10)(x.mean((1, 2)))


def gradients(variables, x, y, axis_name=None):
    """Gradients of the mean loss over all devices, and new statistics."""
    model = Network(axis_name)

    def loss(params):
        inputs = {**variables, "params": params}
        logits, state = model.apply(inputs, x, mutable=["batch_stats"])
        mean = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return (mean if axis_name is None else jax.lax.pmean(mean, axis_name)), state

    return jax.grad(loss, has_aux=True)(variables["params"])


@jax.jit
def on_all_devices(variables, x, y):
    """`gradients` with the batch split over all devices, under `jax.shard_map`'s default checks.

    The parameters are replicated, so JAX sums their gradients over the devices. It does so before
    a quantiser's backward pass, whose clamp therefore sees the gradient of the whole batch.
    """
    step = jax.shard_map(
        functools.partial(gradients, axis_name="data"),
        mesh=jax.sharding.Mesh(jax.devices(), ("data",)),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
    )
    return step(variables, x, y)


def train(step, variables, images, labels, num_steps=10, batch_size=64):
    """SGD steps with the gradients of `step`."""
    for i in range(num_steps):
        rows = slice(i * batch_size, (i + 1) * batch_size)
        grads, state = step(variables, images[rows], labels[rows])
        params = jax.tree.map(lambda p, g: p - 0.05 * g, variables["params"], grads)
        variables = {"params": params, **state}
    return variables


def main():
    """The largest relative difference of any array after ten steps."""
    (images, labels), _ = digits()
    variables = jax.jit(Network().init)(jax.random.key(0), jnp.asarray(images[:1]))
    one, many = (train(s, variables, images, labels) for s in (jax.jit(gradients), on_all_devices))

    def difference(a, b):
        return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a))

    return max(jax.tree.leaves(jax.tree.map(difference, one, many)))


if __name__ == "__main__":
    print(f"{jax.device_count()} devices; largest relative difference {main():.1e}")
