"""Compares four simulated devices with one; `test_mesh.py` runs it in its own process."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import flatten_util
from jax.sharding import NamedSharding, PartitionSpec

from mlg_jax.remat import GroupCodec, RematSpec
from mlg_jax.train import make_mesh, sharded
from tests._models import tiny_resnet


def gradients(num_devices, preset, capacity):
    """Returns `((loss, gradients), program text)`."""
    mesh = make_mesh(jax.devices()[:num_devices])
    model = tiny_resnet(channels=8, remat=RematSpec(preset, capacity, mesh=mesh))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 16, 16, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)

    def loss(params, state, x):
        logits, _ = model.apply(
            {"params": params, **state},
            x,
            train=True,
            mutable=list(state),
            rngs={"quantize": jax.random.key(1)},
        )
        return jnp.sum(jnp.sin(logits))

    same = NamedSharding(mesh, PartitionSpec())
    step = jax.jit(
        jax.value_and_grad(loss), in_shardings=(same, same, sharded(mesh)), out_shardings=same
    )
    args = (variables["params"], {"batch_stats": variables["batch_stats"]}, x)
    compiled = step.lower(*args).compile()
    return step(*args), compiled.as_text()


def main():
    assert jax.device_count() == 4
    plain, _ = gradients(1, "none", 1.0)
    assert_near = functools.partial(np.testing.assert_allclose, atol=2e-5)
    (value, grads), program = gradients(4, "bitmap_blocks", 0.9)
    assert_near(value, plain[0], rtol=1e-5)
    jax.tree.map(lambda a, b: assert_near(a, b, rtol=1e-4), grads, plain[1])
    # gradients and statistics are summed over devices; activations and bitmaps are not exchanged
    assert "all-reduce" in program
    assert not re.search("all-gather|all-to-all|collective-permute", program)
    (_, grads), program = jax.device_get(gradients(4, "quantized_blocks", 1.0))
    assert not re.search("all-gather|all-to-all|collective-permute", program)
    grads, exact = (flatten_util.ravel_pytree(g)[0] for g in (grads, jax.device_get(plain[1])))
    assert 0 < np.linalg.norm(grads - exact) < 0.1 * np.linalg.norm(exact)
    (_, grads), _ = gradients(4, "bitmap_blocks", 0.1)
    assert all(np.all(np.isnan(g)) for g in jax.tree.leaves(grads["stem_conv"]))

    check_rounding()


def check_rounding():
    """Each device rounds its own rows, with random numbers of its own."""
    mesh = make_mesh()
    x = jnp.tile(jax.random.uniform(jax.random.key(0), (1, 512)) - 0.5, (4, 1))
    x = jax.device_put(jnp.maximum(x, 0), sharded(mesh))
    codec = GroupCodec(2, mesh=mesh)
    y = jax.jit(lambda x, key: codec.decode(codec.encode(x, key), jnp.array(False)))(
        x, jax.random.key(1)
    )
    step = float(x.max()) / 3
    np.testing.assert_allclose(y, x, atol=1.001 * step)
    assert not np.array_equal(y[0], y[1])


if __name__ == "__main__":
    main()
