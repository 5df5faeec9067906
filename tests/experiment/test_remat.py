"""`config.remat` in the training of a stage."""

import typing

import jax
import numpy as np
import pytest

from mlg_jax.config import ConfigError, parse_config
from mlg_jax.experiment._remat import AdaptiveRemat
from mlg_jax.experiment._tasks import classification_loss
from mlg_jax.train import make_mesh
from tests._models import tiny_resnet
from tests.experiment.test_run import settings


def make(**remat):
    config = parse_config({**settings(), "remat": remat}).remat
    model = tiny_resnet(channels=8)
    training = AdaptiveRemat(config, model, classification_loss, make_mesh(), jax.random.key(0))
    return training, model


def batches():
    rng = np.random.default_rng(0)
    for _ in range(5):
        image = rng.normal(size=(8, 12, 12, 3)).astype(np.float32)
        yield {"image": image, "label": rng.integers(0, 4, 8)}


def prepared(**remat):
    training, model = make(**remat)
    variables = jax.jit(model.init)(jax.random.key(1), next(batches())["image"])
    training.prepare(variables, batches())
    return training, variables


def gradient(loss_fn, variables):
    state = {"batch_stats": variables["batch_stats"]}
    step = jax.jit(jax.grad(lambda p, b: loss_fn(p, state, b, jax.random.key(2), True)[0]))
    return step(variables["params"], next(batches()))


class _State(typing.NamedTuple):
    params: dict
    model_state: dict


def is_finite(tree):
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


def test_capacities_are_measured():
    training, variables = prepared(policy="bitmap_blocks")
    assert is_finite(gradient(training.loss_fn, variables))
    assert training.exact_loss_fn is not None


def test_fixed_capacity_overflows_and_the_exact_loss_does_not():
    training, variables = prepared(policy="bitmap_blocks", capacity=0.2)
    assert not is_finite(gradient(training.loss_fn, variables))
    assert is_finite(gradient(training.exact_loss_fn, variables))


def test_capacities_follow_densities_both_ways():
    training, variables = prepared(policy="bitmap_blocks")
    model_state = {"batch_stats": variables["batch_stats"]}
    measured = training.policy.capacities
    assert training.on_epoch_end(_State(variables["params"], model_state), next(batches())) is None
    # A norm whose bias is far below zero leaves almost nothing after its ReLU.
    params = jax.tree.map(lambda p: p, variables["params"])
    params["stage1_block1"]["norm2"]["bias"] -= 3.0
    assert training.on_epoch_end(_State(params, model_state), next(batches())) is not None
    pairs = zip(measured, training.policy.capacities, strict=True)
    fell = {name for (name, old), (_, new) in pairs if new < old}
    assert fell
    assert (
        training.on_epoch_end(_State(variables["params"], model_state), next(batches())) is not None
    )
    rose = dict(training.policy.capacities)
    assert all(rose[name] >= 0.9 * dict(measured)[name] for name in fell)


@pytest.mark.parametrize("policy", ["none", "blocks", "quantized_blocks"])
def test_others_cannot_overflow(policy):
    assert make(policy=policy)[0].exact_loss_fn is None


def test_auto_takes_the_fastest_that_fits_or_names_the_least_budget():
    training, variables = prepared(policy="auto", budget_mib=1e5)
    assert training._preset == "none"
    with pytest.raises(ConfigError, match=r"config.remat: `budget_mib` must be at least \d+\.\d"):
        prepared(policy="auto", budget_mib=1e-3)
    sizes = {
        name: training._temporary_bytes(variables, next(batches()), name)
        for name in ("none", "blocks")
    }
    assert sizes["blocks"] != sizes["none"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "remat, message",
    [
        ({"policy": "bitmaps"}, "config.remat: `policy` must be one of .*auto.*; got 'bitmaps'"),
        ({"policy": "auto"}, "`budget_mib` must be a number for policy 'auto'"),
        ({"policy": "blocks", "budget_mib": 3.0}, "None for all others; got 3.0 for 'blocks'"),
        ({"capacity": 0.0}, "`capacity` must be"),
        ({"capacity": 1.5}, "`capacity` must be"),
        ({"margin": -0.1}, "`margin` must be"),
        ({"budget": 1}, "budget"),
    ],
)
def test_bad_configurations(remat, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({**settings(), "remat": remat})
