"""NNX users come in through Flax's bridge: same logits, same parameters, trainable there."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlg_jax import GenerationSpec
from tests._models import tiny_resnet


def test_a_generated_model_works_under_nnx():
    model = tiny_resnet(GenerationSpec.from_bits(2, 6, 3, 6, 3), stage_sizes=(1,), weight_bits=8)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    bridged = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(x)
    _, params, rest = nnx.split(bridged, nnx.Param, ...)
    names = {path[-1] for path, _ in nnx.to_flat_state(params)}
    assert names == {"basis", "coeff_in", "coeff_out", "scale", "bias", "kernel"}
    variables = {
        "params": nnx.to_pure_dict(params),
        "batch_stats": nnx.to_pure_dict(nnx.state(bridged, nnx.BatchStat)),
    }
    assert np.array_equal(bridged(x), model.apply(variables, x))

    gradients = nnx.grad(lambda m: jnp.mean(m(x) ** 2))(bridged)
    expected = jax.grad(lambda p: jnp.mean(model.apply({**variables, "params": p}, x) ** 2))(
        variables["params"]
    )
    got = nnx.to_pure_dict(gradients)
    same = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-5, atol=1e-7), got, expected)
    assert jax.tree.all(same)
