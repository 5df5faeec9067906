"""`jax.shard_map` over four simulated devices against one device; run by `test_shard_map.py`."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

import mlg_jax
from mlg_jax import GenerationSpec
from mlg_jax.layers import BatchNorm, Conv, max_pool
from mlg_jax.remat import BitmapCodec, ResidualPolicy, checkpoint_module
from tests._tolerances import relative_error

SPEC = GenerationSpec.from_bits(2, 8, 4, 6, 4)


class Network(nn.Module):
    """Generated kernels, norms over all devices, max-pooling, a shortcut, a policy."""

    implementation: str
    axis_name: str | None = None
    policy: ResidualPolicy | None = None

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.relu(self.unit("1", x, train))
        block = lambda self, x: x + self.unit("2", x, train)  # noqa: E731
        if self.policy is not None:
            block = checkpoint_module(block, policy=self.policy)
        return jnp.mean(max_pool(block(self, x), (2, 2), (2, 2)), (1, 2))

    def unit(self, name, x, train):
        conv = Conv(
            16,
            (3, 3),
            use_bias=False,
            kernel=SPEC,
            implementation=self.implementation,
            name=f"conv{name}",
        )
        norm = BatchNorm(axis_name=self.axis_name, name=f"norm{name}")
        return norm(conv(x, train=train), train=train)


def gradients(model, variables, x, axis_name=None):
    def loss(params, x):
        values = {**variables, "params": params}
        y, updated = model.apply(values, x, mutable=["batch_stats"])
        value = jnp.mean(jnp.sin(3 * y))
        return (value if axis_name is None else jax.lax.pmean(value, axis_name)), updated

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)


def check(**options):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    # Means far from zero that differ between devices.
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 16)) + jnp.arange(8.0)[:, None, None, None]
    one, four = Network(**options), Network(**options, axis_name="data")
    variables = one.init(jax.random.key(1), x)
    same, split = PartitionSpec(), PartitionSpec("data")
    run = jax.shard_map(
        lambda variables, x: gradients(four, variables, x, "data"),
        mesh=mesh,
        in_specs=(same, split),
        out_specs=((same, same), (same, split)),
    )
    expected = jax.jit(lambda v, x: gradients(one, v, x))(variables, x)
    got = jax.jit(run)(variables, x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) < 1e-5, options


def main():
    assert jax.device_count() == 4 and mlg_jax
    for implementation in ("generate", "factored_out", "factored"):
        check(implementation=implementation)
    policy = ResidualPolicy(BitmapCodec(0.9), on_overflow="silent")
    check(implementation="factored_out", policy=policy)
    check(implementation="generate", policy=ResidualPolicy(BitmapCodec(0.9)))


if __name__ == "__main__":
    main()
