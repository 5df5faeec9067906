"""Every property of every parametrisation; a new parametrisation adds one row to the table."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

import mlg_jax
from mlg_jax import GenerationSpec, QuantSpec
from mlg_jax._types import KernelShape, LayerGeometry
from mlg_jax.kernels import CirculantSpec, KernelsByPath, KernelSpec, OrdinarySpec, bsconv_u
from tests import _oracles
from tests._tolerances import CONTRACTION, X64, relative_error

CONV = LayerGeometry(
    ("conv",), "conv", KernelShape(20, 12, (3, 3)), strides=(2, 1), padding=((1, 1), (1, 1))
)
DENSE = LayerGeometry(("dense",), "dense", KernelShape(20, 12))


def generated(f):
    return _oracles.generate(f["basis"], f.get("coeff_in"), f.get("coeff_out"))


def ordinary(f):
    kernel = f["kernel"]
    return kernel.reshape(-1, *kernel.shape[-2:]).transpose(2, 1, 0)


def circulant(f):
    """The kernel, entry by entry, from the paper's definition of a circulant block."""
    blocks = f["blocks"]
    rows, columns, size, taps = blocks.shape
    kernel = np.zeros((rows * size, columns * size, taps), blocks.dtype)
    for p, q, i, j in itertools.product(range(rows), range(columns), range(size), range(size)):
        kernel[p * size + i, q * size + j] = blocks[p, q, (i - j) % size]
    return kernel


@dataclasses.dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        spec: the parametrisation, with quantisers.
        oracle: the map from factors to the kernel `[out, in, taps]`, in NumPy.
        num_bits: bits of the factors of `CONV`, counted by hand.
        contained: an unquantised spec whose projection must reproduce every kernel of `spec`.
        can_fold: whether a kernel with scaled output channels is again in the family.
        layers: the layers to which it applies.
    """

    spec: KernelSpec
    oracle: Callable[[Any], Any]
    num_bits: int
    contained: KernelSpec
    can_fold: bool = True
    layers: tuple[LayerGeometry, ...] = (CONV, DENSE)


FAMILIES = {
    "ordinary": Family(OrdinarySpec(QuantSpec(6)), ordinary, 6 * 20 * 12 * 9, OrdinarySpec()),
    "generated": Family(
        GenerationSpec.from_bits(2, 3, 3, 6, 4),
        generated,
        3 * (3 * 2 * 9) + 6 * (3 * 12 * 2) + 4 * (20 * 3),
        GenerationSpec(6, 3),  # the projection may mix the three bases, so their ranks add up
        layers=(CONV,),
    ),
    "level 1": Family(
        GenerationSpec.from_bits(2, 0, 3, 6),
        generated,
        3 * (20 * 2 * 9) + 6 * (20 * 12 * 2),
        GenerationSpec(2, 0),
        layers=(CONV,),
    ),
    "level 2": Family(
        GenerationSpec.from_bits(0, 7, 5, None, 4),
        generated,
        5 * (7 * 12 * 9) + 4 * (20 * 7),
        GenerationSpec(0, 7),
    ),
    "BSConv-U": Family(
        bsconv_u(basis=QuantSpec(5), coeff=QuantSpec(4)),
        generated,
        5 * (20 * 9) + 4 * (20 * 12),
        bsconv_u(),
        layers=(CONV,),
    ),
    "circulant": Family(
        CirculantSpec(4, QuantSpec(5)),
        circulant,
        5 * (20 * 12 * 9) // 4,
        CirculantSpec(4),
        can_fold=False,
    ),
}
ROWS = pytest.mark.parametrize(
    "family, layer",
    [
        pytest.param(family, layer, id=f"{name}, {layer.kind}")
        for name, family in FAMILIES.items()
        for layer in family.layers
    ],
)
EACH = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def factors_of(kernel, seed=0, dtype=np.float64):
    """Random factors, in NumPy."""
    rng = np.random.default_rng(seed)
    return {f.name: rng.normal(0, 0.3, f.shape).astype(dtype) for f in kernel.factors}


def image(layer, dtype=np.float64):
    shape = (4, 6, 5, 12) if layer.kind == "conv" else (4, 12)
    return np.random.default_rng(1).normal(size=shape).astype(dtype)


def in_layout(kernel, shape):
    """Converts a kernel `[out, in, taps]` to Flax's layout."""
    return np.transpose(kernel, (2, 1, 0)).reshape(shape.layout)


def product(layer, x, kernel):
    """The layer's output for a given kernel, in NumPy."""
    if layer.kind == "dense":
        return x @ kernel
    return _oracles.convolve(x, kernel, layer.strides, layer.padding, layer.dilation, layer.groups)


@ROWS
def test_build_equals_the_oracle(x64, family, layer):
    kernel = family.spec.bind(layer)
    f = factors_of(kernel)
    built = kernel.build(jax.tree.map(jnp.asarray, f))
    assert relative_error(built, in_layout(family.oracle(f), layer.shape)) < X64


@ROWS
def test_every_implementation_is_the_product_with_the_built_kernel(x64, family, layer):
    kernel, x = family.spec.bind(layer), image(layer)
    f = factors_of(kernel)
    expected = product(layer, x, in_layout(family.oracle(f), layer.shape))
    for name in kernel.implementations or (None,):
        y = jax.jit(functools.partial(kernel.apply, implementation=name))(f, x)
        assert relative_error(y, expected) < X64


@ROWS
def test_gradients_numerically(x64, family, layer):
    kernel, x = family.spec.bind(layer), image(layer)[:2]
    f = jax.tree.map(jnp.asarray, factors_of(kernel))
    apply = jax.jit(functools.partial(kernel.apply, implementation=last_of(kernel)))
    jax.test_util.check_grads(apply, (f, jnp.asarray(x)), 1, modes=["rev"], rtol=1e-6)


def last_of(kernel):
    """The implementation that differs most from building the kernel."""
    return (None, *kernel.implementations)[-1]


@EACH
def test_bits_by_hand(family):
    factors = family.spec.bind(CONV).factors
    assert sum(factor.num_bits for factor in factors) == family.num_bits


@EACH
def test_quantised_factors_are_on_the_grid_of_the_spec(family):
    kernel = family.spec.bind(CONV)
    f = factors_of(kernel, dtype=np.float32)
    for factor in kernel.factors:
        levels = np.unique(kernel.quantize(f)[factor.name])
        assert factor.quant.bits is None or 2 < len(levels) <= 2**factor.quant.bits


@EACH
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: KernelsByPath((("a*", s), ("b", None)))])
def test_specs_survive_json(family, wrap):
    spec = wrap(family.spec)
    assert KernelSpec.from_json(spec.to_json()) == spec
    assert hash(spec) == hash(wrap(family.spec))


@ROWS
def test_a_kernel_of_the_family_is_projected_exactly(x64, family, layer):
    f = factors_of(family.spec.bind(layer))
    target = jnp.asarray(in_layout(family.oracle(f), layer.shape))
    kernel = family.contained.bind(layer)
    for clip in (False, True):
        rebuilt = kernel.build(kernel.project(target, clip=clip))
        # With `clip` the decomposition is computed in float32, on the host.
        assert relative_error(rebuilt, target) < 2e-6


@ROWS
def test_output_scales_are_folded_or_refused(x64, family, layer):
    kernel = family.spec.bind(layer)
    f, gain = factors_of(kernel), np.linspace(0.5, 2.0, 20)
    if not family.can_fold:
        with pytest.raises(ValueError, match="`fold` must be False for kernels of kind"):
            kernel.scale_outputs(f, gain)
        return
    scaled = kernel.build(kernel.scale_outputs(f, gain))
    assert relative_error(scaled, in_layout(family.oracle(f), layer.shape) * gain) < X64


@ROWS
def test_gradients_in_a_checkpointed_function_and_a_sharded_one(family, layer):
    kernel = family.spec.bind(layer)
    f, x = factors_of(kernel, dtype=np.float32), image(layer, np.float32)

    def loss(f, x):
        y = kernel.apply(kernel.quantize(f), x, last_of(kernel))
        return jnp.sum(jnp.sin(y))

    mesh = jax.sharding.Mesh(jax.devices()[:1], ("parts",))

    def sharded(f, x):
        whole = jax.shard_map(
            lambda f, x: jax.lax.psum(loss(f, x), "parts"),
            mesh=mesh,
            in_specs=(P(), P("parts")),
            out_specs=P(),
        )
        return whole(f, x)

    expected = jax.jit(jax.grad(loss, (0, 1)))(f, x)
    for run in (mlg_jax.checkpoint(loss, policy="blocks"), sharded):
        got = jax.jit(jax.grad(run, (0, 1)))(f, x)
        jax.tree.map(lambda a, b: assert_close(a, b), got, expected)


def assert_close(a, b):
    assert relative_error(a, b) < CONTRACTION


class Plain(nn.Module):
    """A plain Flax module that does not know this package."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(20, (3, 3))(x))
        return nn.Dense(20)(nn.LayerNorm()(x.mean((1, 2))))


@EACH
def test_packed_files_hold_the_trained_network(family, tmp_path):
    model = mlg_jax.generated(Plain(), family.spec)
    x = image(CONV, np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    mlg_jax.save_packed(tmp_path / "a.mlg", model, variables, input_shape=(1, 6, 5, 12))
    predictor = mlg_jax.load_packed(tmp_path / "a.mlg", model=Plain(), batch_sizes=(4,))
    for residency in ("float", "codes", "packed"):
        predictor = mlg_jax.load_packed(
            tmp_path / "a.mlg", model=Plain(), batch_sizes=(4,), residency=residency
        )
        np.testing.assert_array_equal(predictor(x), jax.jit(model.apply)(variables, x))


@pytest.mark.bad_input
def test_an_unknown_kind_in_a_file():
    with pytest.raises(ValueError, match=r"`kernel.kind` must be one of \['by_path', .*got 'none'"):
        KernelSpec.from_json({"kind": "none"})
    with pytest.raises(ValueError, match="`kernel` must have the keys .*'block_size'.*; got"):
        KernelSpec.from_json({"kind": "circulant", "size": 3})
