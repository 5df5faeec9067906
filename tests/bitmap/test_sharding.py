"""Under `jax.shard_map` each device packs its own part without communication."""

import pathlib
import subprocess
import sys

from tests._devices import four_devices

SCRIPT = """
import re
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from mlg_jax.bitmap import pack, unpack
from tests.bitmap import _oracle

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
batch = PartitionSpec("data")
x = jax.device_put(_oracle.random_array((8, 700), np.float32, 0.5), NamedSharding(mesh, batch))
on_parts = lambda f: jax.jit(jax.shard_map(f, mesh=mesh, in_specs=batch, out_specs=batch))
packing, unpacking = on_parts(lambda x: pack(x, capacity=0.8)), on_parts(unpack)
bitmap = packing(x)
assert bitmap.shape == (2, 700) and bitmap.words.sharding.spec == batch
assert np.array_equal(_oracle.bits_of(unpacking(bitmap)), _oracle.bits_of(x))
collective = re.compile("all-gather|all-reduce|all-to-all|collective-permute")
for compiled in (packing.lower(x).compile(), unpacking.lower(bitmap).compile()):
    assert not collective.findall(compiled.as_text())
assert collective.findall(jax.jit(pack).lower(x).compile().as_text())  # the pattern does match
"""


def test_no_collectives():
    subprocess.run(
        [sys.executable, "-c", SCRIPT],
        check=True,
        cwd=pathlib.Path(__file__).parents[2],
        env=four_devices(),
    )
