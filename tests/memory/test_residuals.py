"""The list of residuals against lists written by hand, and against the bytes that JAX saves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from mlg_jax.memory import compiled_memory, list_residuals, residual_densities
from mlg_jax.memory._program import make_differentiable
from mlg_jax.memory._residuals import measured_residuals

F32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
PARAMS = {"kernel": F32((8, 3)), "bias": F32((3,))}
X = F32((4, 8))
save_only = jax.checkpoint_policies.save_only_these_names


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def two_sines(params, x):
    hidden = checkpoint_name(jnp.sin(x @ params["kernel"]), "hidden")
    return jnp.sum(jnp.cos(hidden))


def rows(fn, *args, **options):
    listed = list_residuals(fn, *args, **options)
    return [(row.name, row.kind, row.shape, row.dtype, row.num_bytes) for row in listed]


def bytes_by_jax(fn, *args):
    """Bytes of the leaves of the pullback, which JAX's public API gives."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(fn, *a)[1], *args))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def of(name, shape, kind="activation", dtype="float32"):
    return (name, kind, shape, dtype, int(np.prod(shape)) * np.dtype(dtype).itemsize)


KERNEL = of("args[0]['kernel']", (8, 3), "argument")
INPUT = of("args[1]", (4, 8), "argument")


def test_sine_keeps_the_cosine():
    assert rows(jnp.sin, X) == [of("cos", (4, 8))]


def test_sum_keeps_nothing():
    assert rows(jnp.sum, X) == []


def test_product_keeps_its_factors_and_no_bias():
    assert rows(dense, PARAMS, X) == [KERNEL, INPUT]


def test_only_residuals_of_the_differentiated_arguments_are_listed():
    assert rows(dense, PARAMS, X, argnums=0) == [INPUT]
    assert rows(dense, PARAMS, X, argnums=(1,)) == [KERNEL]
    assert rows(dense, PARAMS, X, argnums=-1) == [KERNEL]


def test_an_array_saved_twice_is_listed_once():
    assert rows(lambda x, y: x * x + y, X, X) == [of("args[0]", (4, 8), "argument")]


def test_a_named_array_and_the_array_itself_are_one():
    def fn(x):
        y = jnp.exp(x + 1)  # its derivative saves y, and the product saves the named y
        named = checkpoint_name(y, "hidden")
        return named * named

    for wrapped in (fn, jax.jit(fn)):
        assert bytes_by_jax(wrapped, X) == 2 * 128
        assert rows(wrapped, X) == [of("hidden", (4, 8))]
    assert rows(lambda x: jnp.exp(x) + jnp.exp(x - 1), X) == [
        of("exp", (4, 8)),
        of("exp#2", (4, 8)),
    ]


def test_calls_of_one_jitted_function_have_their_own_residuals():
    sine = jax.jit(jnp.sin)
    assert rows(lambda x: sine(sine(x)), X) == [of("cos", (4, 8)), of("cos#2", (4, 8))]


def test_arguments_that_are_passed_on_stay_arguments():
    @jax.custom_jvp
    def same(x):
        return x

    same.defjvp(lambda primals, tangents: (same(*primals), *tangents))
    expected = [of("args[0]", (4, 8), "argument")]
    assert rows(lambda x: same(x) * x, X) == expected
    assert rows(lambda x: checkpoint_name(x, "hidden") * x, X) == expected
    assert rows(lambda x: jax.lax.stop_gradient(x) * x, X) == expected


def test_a_function_of_jax_has_no_source():
    [row] = list_residuals(jnp.sin, X)
    assert row.source == ""


def test_relu_keeps_a_mask_and_zeros_that_are_a_constant():
    assert rows(lambda x: nn.relu(2 * x), X)[-2:] == [
        of("gt", (4, 8), dtype="bool"),
        of("broadcast_in_dim", (4, 8), "constant"),
    ]


def test_closed_over_arrays_and_literals_are_constants():
    weight = np.arange(32, dtype=np.float32).reshape(4, 8)
    listed = rows(lambda x: jnp.sum(x * weight * 2.0), X)
    assert {row[1] for row in listed} == {"constant"}
    assert of("closed-over array", (4, 8), "constant") in listed


def test_values_that_depend_on_closed_over_arrays_are_activations():
    key = jax.random.key(0)
    listed = rows(lambda x: x * jax.random.bernoulli(key, 0.5, x.shape), X)
    assert [row[1:3] for row in listed] == [("activation", (4, 8))]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_names_and_sources_inside_jit(wrap):
    listed = list_residuals(wrap(two_sines), PARAMS, X)
    assert rows(wrap(two_sines), PARAMS, X) == [KERNEL, INPUT, of("cos", (4, 3)), of("sin", (4, 3))]
    assert [row.operation for row in listed] == ["", "", "cos", "sin"]
    for row in listed[2:]:
        assert row.source.startswith("test_residuals.py:") and row.source.endswith("(two_sines)")


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_checkpoint_policy_keeps_the_named_value(wrap):
    fn = wrap(jax.checkpoint(two_sines, policy=save_only("hidden")))
    assert rows(fn, PARAMS, X) == [KERNEL, INPUT, of("hidden", (4, 3))]
    fn = wrap(jax.checkpoint(two_sines, policy=save_only("other")))
    assert rows(fn, PARAMS, X) == [KERNEL, INPUT]


def test_constants_inside_jit_are_constants():
    listed = rows(jax.jit(lambda x: nn.relu(2 * x)), X)
    assert of("broadcast_in_dim", (4, 8), "constant") in listed
    assert of("gt", (4, 8), dtype="bool") in listed


def test_rounding_by_the_user_is_an_operation():
    def rounded(x):
        y = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        return y * y

    assert rows(rounded, X) == [of("reduce_precision", (4, 8))]


def test_scan_keeps_a_stack():
    def loop(w, x):
        return jax.lax.scan(lambda h, _: (jnp.sin(h @ w), None), x, None, length=5)[0]

    listed = rows(loop, F32((8, 8)), X)
    assert listed[0] == of("args[0]", (8, 8), "argument")
    assert [row[1:3] for row in listed[1:]] == [("activation", (5, 4, 8))] * 2
    assert listed[2][0] == "cos"


def test_modules_give_the_scope():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for name in ("first", "second"):
                x = jnp.sin(nn.Dense(5, name=name)(x))
            return x

    net = Net()
    variables = jax.eval_shape(net.init, jax.random.key(0), X)
    names = [row.name for row in list_residuals(net.apply, variables, X)]
    assert names == [
        "args[0]['params']['first']['kernel']",
        "args[0]['params']['second']['kernel']",
        "args[1]",
        "Net/cos",
        "Net/sin",
        "Net/cos#2",
    ]


@pytest.mark.parametrize(
    "fn, args",
    [
        (jnp.sin, (X,)),
        (dense, (PARAMS, X)),
        (two_sines, (PARAMS, X)),
        (lambda x: jnp.sum(nn.softmax(x) * nn.gelu(x)), (X,)),
        (lambda x: nn.max_pool(x, (2, 2), (2, 2)), (F32((2, 6, 6, 3)),)),
        (jax.vmap(jnp.linalg.norm), (X,)),
    ],
    ids=["sin", "dense", "two_sines", "softmax", "max_pool", "vmap"],
)
def test_bytes_equal_those_that_jax_saves(fn, args):
    assert sum(row.num_bytes for row in list_residuals(fn, *args)) == bytes_by_jax(fn, *args)


@pytest.mark.parametrize(
    "dtype, num_bytes", [("int4", 4), ("int2", 2), ("bool", 7), ("bfloat16", 14), ("uint32", 28)]
)
def test_bytes_of_every_width(dtype, num_bytes):
    """Sub-byte integers are packed inside a program and counted as such; a bool takes a byte."""

    @jax.custom_vjp
    def keeps(x, y):
        return jnp.sum(x)

    keeps.defvjp(lambda x, y: (jnp.sum(x), y), lambda y, ct: (jnp.ones(7) * ct, None))
    [row] = list_residuals(keeps, F32((7,)), jax.ShapeDtypeStruct((7,), dtype), argnums=0)
    assert (row.dtype, row.num_bytes) == (dtype, num_bytes)
    compiled = compiled_memory(lambda y: y.astype("float32"), jax.ShapeDtypeStruct((7,), dtype))
    assert compiled.argument_bytes == num_bytes


def test_arguments_that_are_not_arrays_are_constants():
    def fn(x, name, flip, power, scale):
        assert name == "sin" and flip is True and power == 2
        return scale * jnp.sin(x) ** power

    listed = list_residuals(fn, X, "sin", True, 2, 0.5, argnums=0)
    assert {row.name for row in listed if row.kind == "argument"} <= {"args[4]"}
    assert any(row.operation == "cos" for row in listed)


def test_auxiliary_output_is_not_differentiated():
    def fn(x):
        return jnp.sum(x), jnp.sin(x)

    assert rows(fn, X, has_aux=True) == []
    assert rows(fn, X) == [of("cos", (4, 8))]


def test_zero_fractions_are_counted():
    x = np.arange(-14, 14, dtype=np.float32).reshape(4, 7)
    weight = np.where(x % 3 == 0, 0.0, x)
    program = make_differentiable(lambda x, w: nn.relu(x) * w, (x, weight))
    measured = {row.name: row.zero_fraction for row in measured_residuals(program)}
    assert measured["args[1]"] == np.mean(weight == 0)
    assert measured["max"] == np.mean(x <= 0)
    assert measured["gt"] == np.mean(~(x > 0))
    assert measured["broadcast_in_dim"] == 1.0


def test_negative_zero_is_zero_and_nan_is_not():
    program = make_differentiable(jnp.square, (np.array([0.0, -0.0, np.nan, 1.0], np.float32),))
    measured = [row for row in measured_residuals(program) if row.shape]
    assert [row.zero_fraction for row in measured] == [0.5]


def test_scalars_empty_arrays_and_keys():
    def fn(x, empty, key):
        noise = jax.random.normal(key, x.shape)
        return jnp.sum(jnp.sin(x) * noise) + jnp.sum(jnp.sin(empty))

    program = make_differentiable(fn, (0.0, jnp.zeros((0, 3)), jax.random.key(0)))
    measured = measured_residuals(program)
    assert {row.zero_fraction for row in measured if row.shape == (0, 3)} == {None}
    assert {row.zero_fraction for row in measured if row.shape == ()} <= {0.0, 1.0}
    assert all(row.num_bytes == 0 for row in measured if row.shape == (0, 3))


def test_a_saved_random_key_has_bytes_and_no_zero_fraction():
    @jax.custom_vjp
    def noisy(x, key):
        return jnp.sum(x)

    def backward(key, ct):
        return ct * jax.random.normal(key, (3,)), None

    noisy.defvjp(lambda x, key: (jnp.sum(x), key), backward)
    args = (jnp.ones(3), jax.random.key(0))
    [row] = measured_residuals(make_differentiable(noisy, args))
    assert (row.name, row.dtype, row.num_bytes) == ("args[1]", "key<fry>", 8)
    assert row.zero_fraction is None
    assert residual_densities(noisy, *args) == {}


def test_densities_are_the_same_inside_jit():
    x = np.arange(-14, 14, dtype=np.float32).reshape(4, 7)

    def fn(x):
        return nn.relu(x) ** 2

    inside = jax.jit(functools.partial(residual_densities, fn))(x)
    expected = [row for row in list_residuals(fn, x) if row.kind == "activation"]
    assert set(inside) == {row.name for row in expected}
    np.testing.assert_allclose(inside["gt"], np.mean(x > 0), rtol=1e-6)


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(TypeError, match="`fn` must be a function; got 3"):
        list_residuals(3, X)
    with pytest.raises(ValueError, match=r"`args` must hold a floating-point array; got dtypes \["):
        list_residuals(jnp.sum, jnp.arange(3))
    with pytest.raises(ValueError, match="arguments at `argnums` 1 must hold a floating-point"):
        list_residuals(lambda x, y: x, X, jnp.arange(3), argnums=1)
    with pytest.raises(ValueError, match="`argnums` must be positions of the 1 arguments; got 1"):
        list_residuals(jnp.sin, X, argnums=1)
    for argnums in ("0", True, 1.0, [0, None]):
        with pytest.raises(TypeError, match="`argnums` must be None, an integer or a sequence of"):
            list_residuals(jnp.sin, X, argnums=argnums)
