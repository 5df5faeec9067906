"""A network whose factors are quantised together, in advance, computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import GenerationSpec
from mlg_jax._platform import traced_for
from mlg_jax.experiment._tasks import forward
from mlg_jax.layers import FACTORS, layer_records, quantized_variables
from tests._models import tiny_resnet
from tests._tolerances import relative_error

SPEC = GenerationSpec.from_bits(2, 8, 3, 6, 3)


@pytest.fixture(scope="module")
def network():
    model = tiny_resnet(SPEC, weight_bits=8)
    x = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    return model, jax.jit(model.init)(jax.random.key(0), x), x


def test_logits_and_gradients_are_those_of_layer_by_layer(network):
    model, variables, x = network
    records = layer_records(model, x.shape)

    def loss(params, prepare):
        given = prepare({**variables, "params": params})
        logits, _ = model.apply(given, x, train=True, mutable=["batch_stats"])
        return jnp.mean(logits**2), logits

    found, expected = (
        jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(
            variables["params"], prepare
        )
        for prepare in (lambda v: quantized_variables(records, v), lambda v: v)
    )
    np.testing.assert_allclose(found[0][1], expected[0][1], rtol=1e-5, atol=1e-6)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    assert relative_error(flat(found[1]), flat(expected[1])) < 1e-5


def test_every_quantised_factor_is_in_the_collection(network):
    model, variables, x = network
    records = layer_records(model, x.shape)
    factors = quantized_variables(records, variables)[FACTORS]
    names = {
        (*record.path, factor.name)
        for record in records
        if record.kernel is not None
        for factor in record.kernel.factors
    }
    assert {tuple(k.key for k in path) for path, _ in jax.tree.leaves_with_path(factors)} == names


def test_nothing_is_added_for_a_network_without_quantisers(network):
    _, variables, x = network
    model = tiny_resnet(GenerationSpec(2, 8))
    assert quantized_variables(layer_records(model, x.shape), variables)[FACTORS] == {}


def test_the_trainer_does_so_on_gpus(network):
    model, variables, x = network
    state = {"batch_stats": variables["batch_stats"]}
    arguments = variables["params"], state, x, jax.random.key(3), True
    run = lambda *given: forward(model, *given[:-1], True)  # noqa: E731
    here = jax.make_jaxpr(run)(*arguments)
    with traced_for("gpu"):
        there = jax.make_jaxpr(run)(*arguments)
    assert str(there).count("reduce_max") < str(here).count("reduce_max") / 2
