"""Gradual magnitude pruning: the published schedule, exact counts, and a run that resumes."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import train
from mlg_jax.train import initial_masks, zero_fraction
from mlg_jax.train._pruning import apply_masks, make_pruning
from tests.train import toy
from tests.train.test_loop import interrupt

SPEC = train.PruningSpec(final_sparsity=0.75, end_fraction=0.8, every_steps=2)
KERNELS = ("first/kernel", "second/kernel")


def flat(tree):
    return {"/".join(k.key for k in path): np.asarray(v) for path, v in leaves_of(tree)}


def leaves_of(tree):
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def test_schedule_is_the_published_one():
    """Every 10 steps from 20 to 60 of 100; one value by hand, `s_f (1 - (1 - 2/4)^3)`."""
    spec = train.PruningSpec(
        final_sparsity=0.8, start_fraction=0.2, end_fraction=0.67, every_steps=10
    )
    pruning = make_pruning(spec, 100)
    due = [step for step in range(101) if pruning.is_due(jnp.int32(step))]
    assert due == [30, 40, 50, 60] and pruning.end_step == 60
    shares = [float(pruning.sparsity(step)) for step in (20, 30, 40, 45, 60, 90)]
    expected = [0.0, 0.8 * (1 - 0.75**3), 0.7, 0.7, 0.8, 0.8]
    np.testing.assert_allclose(shares, expected, rtol=1e-6)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_smallest_go_and_never_come_back(scope):
    rng = np.random.default_rng(0)
    params = {
        "a": {"kernel": jnp.asarray(rng.normal(size=(8, 5)), jnp.float32), "bias": jnp.zeros(5)},
        "b": {"kernel": jnp.asarray(10 * rng.normal(size=(3, 4)), jnp.float32)},
    }
    spec = train.PruningSpec(final_sparsity=0.5, end_fraction=1.0, every_steps=1, scope=scope)
    pruning = make_pruning(spec, 2)
    masks = pruning.update(initial_masks(params, spec, None), params, jnp.int32(2))
    values = {name: np.abs(flat(params)[name]) for name in masks}
    assert sorted(values) == ["a/kernel", "b/kernel"]
    groups = [[name] for name in values] if scope == "layer" else [list(values)]
    for names in groups:
        magnitudes = np.concatenate([values[n].reshape(-1) for n in names])
        kept = np.concatenate([np.asarray(masks[n]).reshape(-1) for n in names])
        expected = np.sort(magnitudes)[magnitudes.size // 2 :]
        np.testing.assert_array_equal(np.sort(magnitudes[kept]), expected)
    # Pruned weights stay pruned although they have grown; no pruned weight comes back.
    grown = jax.tree.map(lambda leaf: 100.0 + leaf, params)
    first = pruning.update(initial_masks(params, spec, None), params, jnp.int32(1))
    second = pruning.update(first, grown, jnp.int32(2))
    assert not any(np.any(second[n] & ~first[n]) for n in masks)


def test_counts_are_exact_among_equal_magnitudes():
    params = {"kernel": jnp.ones((4, 5))}
    spec = train.PruningSpec(final_sparsity=0.35, end_fraction=1.0, every_steps=1)
    masks = initial_masks(params, spec, None)
    masks = make_pruning(spec, 1).update(masks, params, jnp.int32(1))
    assert int(np.sum(~np.asarray(masks["kernel"]))) == 7
    pruned = apply_masks(params, masks)
    assert float(zero_fraction(pruned, masks)) == pytest.approx(0.35)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The result and log lines of a run of 12 updates that is pruned every second update."""
    work_dir = tmp_path_factory.mktemp("pruned")
    result = toy.run(spec=toy.make_spec(pruning=SPEC), work_dir=work_dir)
    return result, work_dir


def test_zeros_are_zero_at_the_end_and_reported_on_the_way(pruned):
    result, work_dir = pruned
    lines = train.read_metrics(work_dir)
    fractions = {line["step"]: line["zero_fraction"] for line in lines}
    shares = {3: 1 / 5, 4: 2 / 5, 6: 3 / 5, 8: 4 / 5, 12: 1.0}  # of the five prunings, 2 to 10
    for step, share in shares.items():
        expected = 0.75 * (1 - (1 - share) ** 3)
        assert fractions[step] == pytest.approx(expected, abs=0.5 / 48 + 1e-6), step
    evals = [line for line in lines if line["kind"] == "eval"]
    assert all({"accuracy", "zero_fraction"} <= line.keys() for line in evals)
    assert result.metrics["zero_fraction"] == fractions[12]
    params = flat(result.state.params)
    for name in KERNELS:
        mask = np.asarray(result.state.masks[name])
        assert np.mean(~mask) == pytest.approx(0.75, abs=0.5 / mask.size + 1e-6)
        np.testing.assert_array_equal(params[name] != 0, mask)
    assert np.all(params["first/bias"] != 0)


def test_the_best_checkpoint_is_a_sparse_one(pruned):
    """Whatever the earlier accuracies: only the last evaluation has the final sparsity."""
    result, work_dir = pruned
    assert result.best_step == 12
    params, _, meta = train.load_variables(work_dir / train.CHECKPOINT_DIR)
    assert meta["step"] == 12 and np.mean(params["first"]["kernel"] == 0) == 0.75


@pytest.mark.parametrize("at", [3, 7])
def test_a_stopped_run_goes_on_bit_exactly(tmp_path, pruned, at):
    task = toy.make_task(batches=toy.make_batches(poison={at: interrupt(signal.SIGTERM)}))
    spec = toy.make_spec(pruning=SPEC)
    with pytest.raises(train.TrainingInterrupted):
        toy.run(task, spec, work_dir=tmp_path)
    result = toy.run(spec=spec, work_dir=tmp_path)
    toy.assert_equal(result.state, pruned[0].state)


@pytest.mark.parametrize("name", ["sgd", "sam"])
def test_a_pruned_weight_gets_no_gradient_and_no_update(name):
    """One step by hand: the gradient of `mask * w`, and a masked update."""
    mask = jnp.asarray(np.random.default_rng(3).random((toy.FEATURES, toy.HIDDEN)) < 0.4)
    spec = train.OptimizerSpec(name="sgd", clip_norm=0.1, sam_rho=0.05 if name == "sam" else None)
    schedule = train.make_schedule(
        train.ScheduleSpec(learning_rate=0.1), num_epochs=1, steps_per_epoch=1
    )
    optimizer, mesh = train.make_optimizer(spec, schedule), train.make_mesh()
    params = apply_masks(toy.make_params(), {"first/kernel": mask})
    common = {"model_state": toy.make_model_state(), "optimizer": optimizer}
    batch = train.shard_batch(toy.make_batch(0), mesh)

    def one_step(loss_fn, params, masks):
        state = train.create_state(params=params, key=jax.random.key(5), masks=masks, **common)
        step = train.make_train_step(loss_fn, optimizer, mesh)
        return step(train.replicate(state, mesh), batch)[0]

    def through_mask(params, *args):
        kernel = params["first"]["kernel"] * mask
        return toy.make_loss()({**params, "first": {**params["first"], "kernel": kernel}}, *args)

    state = one_step(toy.make_loss(), params, {"first/kernel": mask})
    expected = one_step(through_mask, params, None)
    for name, value in toy.flat(expected.params).items():
        np.testing.assert_allclose(toy.flat(state.params)[name], value, rtol=1e-5, atol=1e-7)
    assert np.all(np.asarray(state.params["first"]["kernel"])[~np.asarray(mask)] == 0)


def test_patterns_and_frozen_parameters_are_left_out():
    spec = train.PruningSpec(final_sparsity=0.5, exclude=("second/*",))
    assert list(initial_masks(toy.make_params(), spec, None)) == ["first/kernel"]
    spec = train.PruningSpec(final_sparsity=0.5)
    masks = initial_masks(toy.make_params(), spec, lambda name: name.startswith("second"))
    assert list(masks) == ["second/kernel"]
    assert initial_masks(toy.make_params(), None, None) == {}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"final_sparsity": 1.0}, r"`final_sparsity` must be a number in \(0, 1\); got 1.0"),
        ({"final_sparsity": 0}, r"`final_sparsity` must be a number in \(0.0, 1.0\]; got 0"),
        ({"start_fraction": 0.5}, r"`start_fraction` must be below `end_fraction` 0.5; got 0.5"),
        ({"end_fraction": 1.5}, r"`end_fraction` must be .*; got 1.5"),
        ({"every_steps": 0}, r"`every_steps` must be an integer >= 1; got 0"),
        ({"scope": "row"}, r"`scope` must be one of \['global', 'layer'\]; got 'row'"),
        ({"exclude": "a"}, r"`exclude` must be tuple; got 'a'"),
        ({"exclude": (1,)}, r"`exclude` must be str; got 1"),
    ],
)
def test_specs_that_do_not_fit(overrides, message):
    with pytest.raises((TypeError, ValueError), match=message):
        train.PruningSpec(**{"final_sparsity": 0.5, **overrides})


@pytest.mark.bad_input
def test_runs_that_cannot_be_pruned():
    with pytest.raises(ValueError, match=r"`every_steps` must be at most the 6 steps .*; got 100"):
        toy.run(spec=toy.make_spec(pruning=train.PruningSpec(final_sparsity=0.5)))
    spec = train.PruningSpec(final_sparsity=0.5, every_steps=1, exclude=("*",))
    with pytest.raises(ValueError, match=r"`pruning` must leave a kernel to prune; got none among"):
        toy.run(spec=toy.make_spec(pruning=spec))
    with pytest.raises(TypeError, match="`pruning` must be PruningSpec or None; got 0.5"):
        toy.make_spec(pruning=0.5)
