"""Compares four simulated devices with one; run by `test_implementations.py` as a subprocess."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlg_jax.generation import _factored
from tests._models import apply_generated
from tests.generation.test_implementations import RECORD, SPEC, factors_of, image


def main():
    assert jax.device_count() == 4
    # Eight rows per part: two parts, with two rows per device.
    _factored.PART_BYTES = 2 * 7 * 6 * 20 * 4 * 4
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    split, same = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    factors, x = factors_of(RECORD, SPEC, dtype=np.float32), image(RECORD, batch=16, dtype="f4")

    def loss(factors, x):
        layer = functools.partial(apply_generated, "factored", layer=RECORD)
        return jnp.sum(jnp.sin(layer(factors, x)))

    step = jax.value_and_grad(loss, (0, 1))
    sharded = jax.jit(step, in_shardings=(same, split), out_shardings=(same, (same, split)))
    program = sharded.lower(factors, x).compile()
    collectives = set(
        re.findall(r"(all-gather|all-to-all|collective-permute)\(", program.as_text())
    )
    assert not collectives, collectives
    assert "while(" in program.as_text(), "the batch is run in parts"
    one, four = jax.jit(step)(factors, x), program(factors, x)
    for a, b in zip(jax.tree.leaves(four), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


if __name__ == "__main__":
    main()
