"""The transform: unchanged values and gradients, few residuals, and the functions it accepts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

import mlg_jax
from mlg_jax.models import create_model
from mlg_jax.remat import (
    BitmapCodec,
    GroupCodec,
    Identity,
    RematSpec,
    ResidualPolicy,
    checkpoint_module,
    save_bitmaps,
)

EXACT = {
    "blocks": ResidualPolicy(),
    "bitmap_blocks": ResidualPolicy(BitmapCodec(0.8)),
    "names": ResidualPolicy(names=("inner",)),
    "bitmap and names": ResidualPolicy(BitmapCodec(0.8), names=("inner",), named=Identity()),
    "slices": ResidualPolicy(num_slices=4),
    "bitmap and slices": ResidualPolicy(BitmapCodec(0.8), num_slices=2),
}


def block(params, x):
    hidden = checkpoint_name(jnp.tanh(x @ params["in"]), "inner")
    return jax.nn.relu(x + hidden @ params["out"])


def make(num=24, batch=32):
    rng = np.random.default_rng(0)
    params = {
        k: jnp.asarray(rng.normal(size=(num, num)) / num**0.5, jnp.float32) for k in ("in", "out")
    }
    return params, jax.nn.relu(jnp.asarray(rng.normal(size=(batch, num)), jnp.float32))


def loss(fn, params, x):
    for _ in range(3):
        x = fn(params, x)
    return jnp.sum(jnp.sin(x))


def leaf_bytes(fn, *args):
    """Bytes of the residuals, including arguments."""
    residuals = jax.eval_shape(lambda *a: jax.vjp(fn, *a)[1], *args)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))


def assert_same(got, wanted, tolerance=1e-6):
    """Compares relative to the largest entry of all leaves: some gradients before a norm are 0."""
    scale = max(np.max(np.abs(np.asarray(b, np.float64))) for b in jax.tree.leaves(wanted))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
        assert np.max(np.abs(difference)) <= tolerance * scale


@pytest.mark.parametrize("storage", EXACT.values(), ids=EXACT.keys())
@pytest.mark.parametrize("is_jitted", [False, True], ids=["eager", "jit"])
def test_gradients_equal_those_without_checkpointing(storage, is_jitted):
    params, x = make()
    kept = mlg_jax.checkpoint(block, policy=storage)
    run = jax.value_and_grad(functools.partial(loss, kept), argnums=(0, 1))
    run = jax.jit(run) if is_jitted else run
    wanted = jax.value_and_grad(functools.partial(loss, block), argnums=(0, 1))(params, x)
    assert_same(run(params, x), wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64], ids=str)
def test_other_dtypes(dtype, x64):
    params, x = jax.tree.map(lambda a: a.astype(dtype), make())
    kept = mlg_jax.checkpoint(block, policy="bitmap_blocks", capacity=0.8)
    got, wanted = (jax.grad(functools.partial(loss, fn))(params, x) for fn in (kept, block))
    assert jax.tree.leaves(got)[0].dtype == dtype
    tolerance = {"bfloat16": 3e-2, "float16": 3e-3, "float64": 1e-14}[jnp.dtype(dtype).name]
    assert_same(got, wanted, tolerance)


def test_residuals_of_each_policy():
    params, x = make()
    size, weights = x.size * 4, 2 * params["in"].size * 4

    def kept(policy, **options):
        return leaf_bytes(mlg_jax.checkpoint(block, policy=policy, **options), params, x) - weights

    assert kept("blocks") == size
    assert kept(EXACT["names"]) == 2 * size
    packed = mlg_jax.pack(x, capacity=0.5).nbytes + 4  # + the count of non-zeros
    assert kept("bitmap_blocks", capacity=0.5) == packed < 0.8 * size
    group = size // 4 + 8 * -(-x.size // 256)
    assert kept(ResidualPolicy(GroupCodec(8)), key=jax.random.key(0)) == group
    assert leaf_bytes(block, params, x) - weights > 2 * size


def test_compiled_program_saves_less():
    """In a deep chain residuals dominate; XLA:CPU undoes `jax.checkpoint` here (jax 0.10)."""
    depth, (params, x) = 24, make(64, 1024)
    layers = jax.tree.map(lambda p: jnp.stack([p] * depth), params)

    def run(fn, layers, x):
        for i in range(depth):
            x = fn(jax.tree.map(lambda p, i=i: p[i], layers), x)
        return jnp.sum(x)

    def temporaries(fn):
        step = jax.jit(jax.grad(functools.partial(run, fn)))
        return step.lower(layers, x).compile().memory_analysis().temp_size_in_bytes / x.nbytes

    plain = temporaries(block)
    dense = temporaries(mlg_jax.checkpoint(block, policy="blocks"))
    packed = temporaries(mlg_jax.checkpoint(block, policy="bitmap_blocks", capacity=0.5))
    assert plain > 2 * depth
    assert dense < depth + 10
    assert packed < 0.6 * depth + 10


def test_slices_need_the_working_memory_of_one_slice():
    params, x = make(16, 1024)
    wide = {"in": jnp.tile(params["in"], (1, 32)), "out": jnp.tile(params["out"], (32, 1))}

    def temporaries(num_slices):
        fn = mlg_jax.checkpoint(_narrow, policy=ResidualPolicy(num_slices=num_slices))
        step = jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.sin(fn(p, x)))))
        return step.lower(wide, x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.3 * temporaries(1)


def _narrow(params, x):
    return x + jnp.tanh(x @ params["in"]) @ params["out"]


@pytest.mark.parametrize("capacity, overflowed", [(0.9, False), (0.2, True)])
def test_lost_entries_make_every_cotangent_nan(capacity, overflowed):
    params, x = make()
    kept = mlg_jax.checkpoint(
        block, policy=ResidualPolicy(BitmapCodec(capacity), on_overflow="silent")
    )
    value, grads = jax.value_and_grad(lambda p, x: jnp.sum(kept(p, x)), argnums=(0, 1))(params, x)
    jax.effects_barrier()
    assert np.isfinite(value)
    for leaf in jax.tree.leaves(grads):
        assert np.all(np.isnan(leaf)) if overflowed else np.all(np.isfinite(leaf))


@pytest.mark.parametrize(
    "storage",
    [
        ResidualPolicy(BitmapCodec(0.8), ("inner",), BitmapCodec(0.8), on_overflow="silent"),
        ResidualPolicy(BitmapCodec(0.2), ("inner",), Identity(), on_overflow="silent"),
    ],
    ids=["named", "activation"],
)
def test_one_overflow_of_activation_or_named_value_is_enough(storage):
    """Half of the activation's entries are zero, and none of the named array's."""
    params, x = make()
    kept = mlg_jax.checkpoint(block, policy=storage)
    grads = jax.grad(lambda p, x: jnp.sum(kept(p, x)), argnums=(0, 1))(params, x)
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("lost", [0, 1])
def test_one_overflow_of_two_activations_is_enough(lost):
    params, x = make()
    pair = [x, x]
    pair[lost] = jnp.ones_like(x)
    storage = ResidualPolicy(BitmapCodec(0.8), on_overflow="silent")
    kept = mlg_jax.checkpoint(lambda x, y: jnp.sum(x * y * x), policy=storage, activations=(0, 1))
    grads = jax.grad(kept, argnums=(0, 1))(*pair)
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(grads))


def gelu_block(params, x):
    return x + jax.nn.gelu(x @ params["in"]) @ params["out"]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_an_overflow_warns_once_and_names_function_density_and_capacity(wrap):
    params, _ = make()
    x = jnp.linspace(-1.0, 1.0, 768).reshape(32, 24)  # no ReLU: no zeros
    kept = mlg_jax.checkpoint(gelu_block, policy="bitmap_blocks", capacity=0.25)
    gradient = wrap(jax.grad(lambda p, x: jnp.sum(kept(p, x))))
    with pytest.warns(RuntimeWarning) as caught:
        for _ in range(2):
            assert np.all(np.isnan(gradient(params, x)["in"]))
        jax.effects_barrier()
    messages = [str(warning.message) for warning in caught]
    assert all("gelu_block: the bitmap has room for a share of 0.250" in m for m in messages)
    assert all("1.000 are non-zero" in m for m in messages)
    assert len(messages) == (1 if wrap is jax.jit else 2)  # eager calls are traced again


def test_without_overflow_there_is_no_warning_under_vmap_and_scan():
    params, x = make()
    kept = mlg_jax.checkpoint(block, policy="bitmap_blocks", capacity=0.9)

    def total(p, x):
        return jnp.sum(jax.lax.scan(lambda carry, _: (kept(p, carry), None), x, None, length=2)[0])

    batched = jax.vmap(jax.grad(total), (None, 0))(params, jnp.stack([x, 2 * x]))
    jax.effects_barrier()  # a warning would be an error
    assert np.all(np.isfinite(batched["in"]))


def test_a_models_block_is_named_by_its_path():
    model = create_model(
        "resnet10", num_classes=3, width=0.125, remat=RematSpec("bitmap_blocks", 0.02)
    )
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(1), x)

    @jax.jit
    def gradient(params, x):
        def loss(params):
            values = {**variables, "params": params}
            return jnp.sum(model.apply(values, x, train=True, mutable=["batch_stats"])[0])

        return jax.grad(loss)(params)

    with pytest.warns(RuntimeWarning) as caught:
        jax.block_until_ready(gradient(variables["params"], x))
        jax.effects_barrier()
    names = sorted(str(warning.message).partition(":")[0] for warning in caught)
    assert names == [f"stage{stage}_block1" for stage in (1, 2, 3, 4)]


def test_defaults_keywords_closures_and_python_values():
    params, x = make()
    scale = jnp.float32(2.0)

    def outer(wrap, params, x, scale):
        def fn(p, x, *, power=2, shift=scale, name="relu"):
            y = getattr(jax.nn, name)(x @ p["in"]) ** power
            return {"y": y + shift * x, "count": jnp.sum(x > 0)}

        out = wrap(fn)(params, x, power=3)
        return jnp.sum(out["y"]) + wrap(fn)(params, x)["y"][0, 0], out["count"]

    wrap = functools.partial(mlg_jax.checkpoint, policy="bitmap_blocks", capacity=0.9)
    differentiate = functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    wanted = differentiate(functools.partial(outer, lambda f: f))(params, x, scale)
    got = jax.jit(differentiate(functools.partial(outer, wrap)))(params, x, scale)
    assert_same(got, wanted)
    assert np.any(wanted[1][2] != 0)  # the gradient of the closed-over `scale`


def test_vmap_scan_and_second_order():
    params, x = make(8, 12)
    kept = mlg_jax.checkpoint(block, policy="bitmap_blocks", capacity=0.9)

    def scanned(fn, params, x):
        return jnp.sum(jax.lax.scan(lambda c, _: (fn(params, c), None), x, length=3)[0] ** 2)

    grads = [jax.grad(functools.partial(scanned, fn))(params, x) for fn in (kept, block)]
    assert_same(*grads)
    batched = [
        jax.vmap(jax.grad(functools.partial(loss, fn)), (None, 0))(params, x.reshape(4, 3, 8))
        for fn in (kept, block)
    ]
    assert_same(*batched)

    def twice(fn):
        first = jax.grad(lambda x: loss(fn, params, x) ** 2)
        return jax.grad(lambda x: jnp.sum(jnp.cos(first(x))))(x)

    assert_same(twice(mlg_jax.checkpoint(block, policy="blocks")), twice(block), 1e-5)
    with pytest.raises(NotImplementedError, match="differentiated only once.*`blocks`"):
        twice(kept)


def test_some_parameters_can_be_constants():
    params, x = make()
    kept = mlg_jax.checkpoint(block, policy="blocks")

    def partial_loss(fn, half):
        return loss(fn, {"in": half, "out": params["out"]}, x)

    got, wanted = (
        jax.grad(functools.partial(partial_loss, fn))(params["in"]) for fn in (kept, block)
    )
    assert_same(got, wanted)


def test_activations_are_chosen_by_position():
    params, x = make()
    swapped = mlg_jax.checkpoint(
        lambda x, p: block(p, x), policy="bitmap_blocks", capacity=0.5, activations=0
    )
    straight = mlg_jax.checkpoint(block, policy="bitmap_blocks", capacity=0.5)
    assert leaf_bytes(swapped, x, params) == leaf_bytes(straight, params, x)


def test_rounding_policies_need_a_key_and_depend_on_it():
    params, x = make()

    def grads(seed):
        kept = mlg_jax.checkpoint(block, policy="quantized_blocks", key=jax.random.key(seed))
        return jax.grad(functools.partial(loss, kept))(params, x)["in"]

    assert np.array_equal(grads(0), grads(0)) and not np.array_equal(grads(0), grads(1))
    assert_same(grads(0), jax.grad(functools.partial(loss, block))(params, x)["in"], 0.1)


def test_each_saved_array_is_rounded_with_its_own_key():
    """With one key for both, equal arrays would have equal errors."""

    def fn(weights, x, y):
        named = [checkpoint_name(jnp.tanh(array), "inner") for array in (x, y)]
        return sum(jnp.sum(w * array) for w, array in zip(weights, named, strict=True))

    x = make()[1]
    storage = ResidualPolicy(Identity(), names=("inner",), named=GroupCodec(2))
    kept = mlg_jax.checkpoint(fn, policy=storage, key=jax.random.key(0))
    left, right = jax.grad(kept)([jnp.ones_like(x)] * 2, x, x)
    assert np.any(left != right) and np.any(left != jnp.tanh(x))


def test_gradients_linear_in_the_saved_array_are_unbiased():
    """dW = x^T dy for y = x W: the mean over keys is exact to within five standard errors."""
    params, x = make(16, 32)

    def grad(key):
        kept = mlg_jax.checkpoint(lambda p, x: x @ p, policy=ResidualPolicy(GroupCodec(2)), key=key)
        return jax.grad(lambda p: jnp.sum(jnp.cos(kept(p, x))))(params["in"])

    # the cotangent of y does not depend on the rounding: cos is outside the checkpointed function
    samples = np.asarray(jax.vmap(grad)(jax.random.split(jax.random.key(0), 2000)), np.float64)
    wanted = jax.grad(lambda p: jnp.sum(jnp.cos(x @ p)))(params["in"])
    error = samples.mean(0) - np.asarray(wanted, np.float64)
    spread = samples.std(0) / 2000**0.5
    assert np.all(np.abs(error) <= 5 * spread + 1e-6) and np.median(spread) > 1e-4


def test_jax_checkpoint_with_save_bitmaps_saves_only_the_bitmaps():
    params, x = make()
    unit = mlg_jax.checkpoint(block, policy="bitmap_blocks", capacity=0.7)

    def two(params, x):
        return unit(params, unit(params, x))

    kept = jax.checkpoint(two, policy=save_bitmaps)
    weights, packed = 2 * params["in"].size * 4, mlg_jax.pack(x, capacity=0.7).nbytes
    residuals = leaf_bytes(kept, params, x) - weights
    assert 2 * packed <= residuals <= 2 * packed + x.nbytes  # x itself is an argument
    assert_same(
        jax.grad(functools.partial(loss, kept))(params, x),
        jax.grad(functools.partial(loss, two))(params, x),
    )


class Layer(nn.Module):
    """A module with statistics, a random stream and a Python argument."""

    features: int

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.BatchNorm(use_running_average=not train)(nn.Dense(self.features)(x))
        return nn.relu(x + nn.Dropout(0.2, deterministic=not train)(y))


@pytest.mark.parametrize("policy", ["none", "blocks", "bitmap_blocks", "quantized_blocks"])
def test_linen_modules(policy):
    _, x = make()
    wrapped = checkpoint_module(Layer, policy=policy, activations=0, capacity=0.9)

    class Net(nn.Module):
        layer: type

        @nn.compact
        def __call__(self, x, train=False):
            for i in range(2):
                x = self.layer(24, name=f"layer{i}")(x, train)
            return x

    def run(layer):
        net = Net(layer)
        variables = net.init(jax.random.key(0), x)
        rngs = {"dropout": jax.random.key(1), "quantize": jax.random.key(2)}

        def loss_fn(params):
            y, updated = net.apply(
                {**variables, "params": params}, x, True, mutable=["batch_stats"], rngs=rngs
            )
            return jnp.sum(jnp.sin(y)), updated

        return variables, jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(variables["params"])

    wanted, got = run(Layer), run(wrapped)
    assert jax.tree.structure(got[0]) == jax.tree.structure(wanted[0])
    assert_same(got[0], wanted[0])
    assert_same(got[1][0], wanted[1][0])  # value and statistics
    assert_same(got[1][1], wanted[1][1], 0.05 if policy == "quantized_blocks" else 2e-6)


@pytest.mark.bad_input
def test_bad_input():
    params, x = make()
    with pytest.raises(
        ValueError, match="`policy` must be one of .*bitmap_blocks.*; got 'bitmaps'"
    ):
        mlg_jax.checkpoint(block, policy="bitmaps")
    with pytest.raises(TypeError, match="`policy` must be"):
        mlg_jax.checkpoint(block, policy=3)
    for capacity in (0.0, 1.5):
        with pytest.raises(ValueError, match="`capacity` must be"):
            mlg_jax.checkpoint(block, policy="bitmap_blocks", capacity=capacity)
    with pytest.raises(ValueError, match="`key` must be a random key"):
        mlg_jax.checkpoint(block, policy="quantized_blocks")
    with pytest.raises(TypeError, match="`activations` must select floating-point arrays.*int32"):
        mlg_jax.checkpoint(lambda x: x * 2.0, policy="bitmap_blocks")(jnp.arange(3))
    with pytest.raises(ValueError, match="`activations` must be positions of the 2 positional"):
        mlg_jax.checkpoint(block, policy="blocks", activations=5)(params, x)
    with pytest.raises(ValueError, match="no side effects.*noisy"):

        def noisy(params, x):
            jax.debug.print("{}", x)
            return x

        mlg_jax.checkpoint(noisy, policy="blocks")(params, x)
    for num_slices in (0, 1.5):
        with pytest.raises((TypeError, ValueError), match="`num_slices` must be"):
            ResidualPolicy(num_slices=num_slices)
    with pytest.raises(ValueError, match="`num_slices` must be 1 beside `names`; got 2"):
        ResidualPolicy(names=("inner",), num_slices=2)
    with pytest.raises(ValueError, match="`num_slices` must divide the 32 examples; got 3"):
        mlg_jax.checkpoint(block, policy=ResidualPolicy(num_slices=3))(*make())
