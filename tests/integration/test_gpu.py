"""On a CUDA device: the same values as on the CPU, and kernels that are not kept there either."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import GenerationSpec, QuantSpec, fake_quantize
from mlg_jax.memory import allocator_peak
from mlg_jax.quant import decode, encode
from mlg_jax.remat import PRESETS, RematSpec
from tests._models import tiny_resnet
from tests._tolerances import relative_error

pytestmark = pytest.mark.gpu


@pytest.fixture
def devices():
    try:
        return jax.devices("cuda")[0], jax.devices("cpu")[0]
    except RuntimeError:
        pytest.skip("no CUDA device")


def on(device, fn, *args):
    return jax.tree.map(np.asarray, jax.jit(fn)(*jax.device_put(args, device)))


@pytest.mark.parametrize("bits", [1, 3, 8, 16])
@pytest.mark.parametrize("scheme", ["dorefa_sym", "dorefa"])
def test_quantisers_agree_and_decode_exactly(devices, bits, scheme):
    x = np.random.default_rng(0).normal(size=(64, 77)).astype(np.float32)
    spec = QuantSpec(bits, scheme)
    gpu, cpu = (on(d, functools.partial(fake_quantize, spec=spec), x) for d in devices)
    step = np.ptp(cpu) / (2**bits - 1)
    # tanh differs by an ulp or two between the backends, so an entry at an edge may take the other
    # level: the more levels, the more edges.
    assert np.mean(np.abs(gpu - cpu) > 0.5 * step) < 1e-3 + 2.0**bits * 2e-6
    assert np.max(np.abs(gpu - cpu)) < 1.5 * step
    decoded = on(devices[0], lambda x: decode(encode(x, spec)), x)
    assert np.array_equal(decoded, gpu)


@pytest.mark.parametrize("dtype, tolerance", [(None, 1e-3), (jnp.bfloat16, 0.1)])
def test_training_gradients_agree(devices, dtype, tolerance):
    model = tiny_resnet(GenerationSpec(2, 6), dtype=dtype)
    x = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
    with jax.default_device(devices[1]):
        variables = jax.jit(model.init)(jax.random.key(0), x)

    def loss(params, stats, x):
        logits, _ = model.apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(logits.astype(jnp.float32) ** 2)

    args = variables["params"], variables["batch_stats"], x
    with jax.default_matmul_precision("highest"):
        gpu, cpu = (on(device, jax.grad(loss), *args) for device in devices)
    norm = lambda tree: np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])  # noqa: E731
    assert relative_error(norm(gpu), norm(cpu)) < tolerance


def test_kernels_are_not_kept(devices):
    model = tiny_resnet(GenerationSpec(2, 8), channels=128, stage_sizes=(3, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))

    def loss(params, x):
        logits, _ = model.apply({**variables_of(params)}, x, train=True, mutable=["batch_stats"])
        return jnp.mean(logits**2)

    def variables_of(params):
        zeros = lambda s: jnp.zeros(s.shape, s.dtype)  # noqa: E731
        return {"params": params, "batch_stats": jax.tree.map(zeros, variables["batch_stats"])}

    with jax.default_device(devices[0]):
        x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
        compiled = jax.jit(jax.grad(loss)).lower(variables["params"], x).compile()
    kernels = 4 * 9 * (6 * 128 * 128 + 128 * 256 + 5 * 256 * 256)
    assert compiled.memory_analysis().temp_size_in_bytes < kernels


def gradients_of(model, x):
    """A compiled gradient, and its arguments, all on the default device."""
    variables = jax.jit(tiny_resnet(GenerationSpec(2, 8)).init)(jax.random.key(0), x)

    def loss(params, stats, x):
        logits, _ = model.apply(
            {"params": params, "batch_stats": stats},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"quantize": jax.random.key(1)},
        )
        return jnp.mean(logits**2)

    arguments = variables["params"], variables["batch_stats"], x
    return jax.jit(jax.grad(loss)).lower(*arguments).compile(), arguments


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("preset", [name for name, preset in PRESETS.items() if preset.is_exact])
def test_policies_change_no_gradient(devices, preset):
    x = jax.random.normal(jax.random.key(2), (8, 16, 16, 3))
    remat = RematSpec(preset, 0.9, on_overflow="silent")
    with jax.default_matmul_precision("highest"):
        models = (tiny_resnet(GenerationSpec(2, 8), remat=r) for r in (remat, RematSpec()))
        found, expected = (flat(f(*args)) for f, args in (gradients_of(m, x) for m in models))
    assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("implementation", ["factored_out", "factored"])
def test_implementations_agree(devices, implementation):
    x = jax.random.normal(jax.random.key(2), (8, 16, 16, 3))
    with jax.default_matmul_precision("highest"):
        models = (
            tiny_resnet(GenerationSpec(2, 8), implementation=name)
            for name in (implementation, "generate")
        )
        found, expected = (flat(f(*args)) for f, args in (gradients_of(m, x) for m in models))
    assert relative_error(found, expected) < 1e-3


def test_the_allocator_peaks_at_the_compiled_bytes(devices):
    x = jax.random.normal(jax.random.key(2), (512, 32, 32, 3))
    model = tiny_resnet(GenerationSpec(2, 8), channels=64, remat=RematSpec("blocks"))
    init = tiny_resnet(GenerationSpec(2, 8), channels=64).init
    variables = jax.jit(init)(jax.random.key(0), x[:1])

    def loss(params, stats, x):
        logits, _ = model.apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(logits**2)

    arguments = variables["params"], variables["batch_stats"], x
    compiled = jax.jit(jax.grad(loss)).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    peak = allocator_peak(lambda: compiled(*arguments))
    assert peak.is_of_call
    expected = memory.temp_size_in_bytes + memory.output_size_in_bytes
    # A chunk may be larger than what was asked for, by up to 128 MiB.
    assert expected <= peak.call_bytes <= 1.05 * expected + 2**27
