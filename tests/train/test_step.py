"""One update: gradients, accumulation, keys, and steps that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlg_jax.train import (
    OptimizerSpec,
    ScheduleSpec,
    create_state,
    evaluate,
    make_eval_step,
    make_mesh,
    make_optimizer,
    make_schedule,
    make_train_step,
    replicate,
    shard_batch,
)
from tests.train import toy

MESH = make_mesh()


def make(loss_fn=None, *, spec=None, params=None, **kwargs):
    """A training step and an initial state."""
    schedule = make_schedule(ScheduleSpec(learning_rate=0.1), num_epochs=1, steps_per_epoch=1)
    optimizer = make_optimizer(spec or OptimizerSpec(name="sgd", momentum=0.9), schedule)
    state = create_state(
        params=params or toy.make_params(),
        model_state=toy.make_model_state(),
        optimizer=optimizer,
        key=jax.random.key(5),
    )
    step = make_train_step(loss_fn or toy.make_loss(), optimizer, MESH, **kwargs)
    return step, replicate(state, MESH)


def put(batch, **kwargs):
    return shard_batch(batch, MESH, **kwargs)


def gradient_of(state, batch, loss_fn=None):
    loss_fn = loss_fn or toy.make_loss()
    key = jax.random.fold_in(state.key, state.step)
    return jax.grad(lambda p: loss_fn(p, state.model_state, batch, key, True)[0])(state.params)


def poisoned(loss_fn, *, of_loss, of_gradient):
    """A loss whose value or gradient is not finite if the batch is marked "bad"."""

    @jax.custom_vjp
    def poison(x, bad):
        return x

    def backward(bad, ct):
        return jnp.where(bad, jnp.nan, ct), None

    poison.defvjp(lambda x, bad: (x, bad), backward)

    def bad_loss_fn(params, model_state, batch, key, is_training):
        bad = batch["bad"].any()
        if of_gradient:
            kernel = poison(params["first"]["kernel"], bad)
            params = {**params, "first": {**params["first"], "kernel": kernel}}
        loss, aux = loss_fn(params, model_state, batch, key, is_training)
        return (jnp.where(bad, jnp.inf, loss) if of_loss else loss), aux

    return bad_loss_fn


def with_flag(batch, is_bad):
    return {**batch, "bad": np.full(toy.ROWS, is_bad)}


def test_first_step_is_gradient_descent():
    step, state = make()
    batch = toy.make_batch(0)
    before = toy.flat(state.params)
    grads = toy.flat(gradient_of(state, batch))
    new, report = step(state, put(batch))
    for name, value in toy.flat(new.params).items():
        # Nesterov's first step is (1 + momentum) g.
        np.testing.assert_allclose(value, before[name] - 0.19 * grads[name], rtol=1e-5, atol=1e-7)
    assert int(new.step) == 1 and bool(report.is_applied)
    expected_mean = 0.1 * batch["x"].mean(0)
    np.testing.assert_allclose(new.model_state["mean"], expected_mean, rtol=1e-4, atol=1e-7)


def test_metrics_are_the_loss_functions():
    step, state = make()
    batch = toy.make_batch(0)
    loss, (metrics, _) = toy.make_loss()(
        state.params, state.model_state, batch, jax.random.key(0), True
    )
    expected = {"loss": float(loss), "accuracy": float(metrics["accuracy"])}
    _, report = step(state, put(batch))
    means = report.sums.means()
    assert means.keys() == expected.keys()
    for name, value in expected.items():
        assert means[name] == pytest.approx(value, rel=1e-6)


def test_the_state_given_is_donated_and_the_caller_s_arrays_are_not():
    params = toy.make_params()
    step, state = make(params=params)
    step(state, put(toy.make_batch(0)))
    assert state.params["first"]["kernel"].is_deleted()
    assert not params["first"]["kernel"].is_deleted()


@pytest.mark.parametrize("num_parts", [2, 4])
@pytest.mark.parametrize("is_masked", [False, True])
def test_accumulation_equals_the_full_batch(num_parts, is_masked):
    """Even if the micro-batches have different numbers of unmasked rows."""
    batch = toy.make_batch(0)
    if is_masked:
        rows = np.arange(toy.ROWS)
        batch["mask"] = (rows % num_parts != 0) & (rows > 5)
    results = []
    for parts in (1, num_parts):
        step, state = make(accumulation_steps=parts)
        new, report = step(state, put(batch, num_parts=parts))
        results.append((toy.flat(new.params), report.sums.means()))
    (whole, whole_means), (split, split_means) = results
    for name in whole:
        np.testing.assert_allclose(split[name], whole[name], rtol=1e-5, atol=1e-7, err_msg=name)
    for name in whole_means:
        assert split_means[name] == pytest.approx(whole_means[name], rel=1e-5)


def test_accumulation_threads_the_model_state_and_draws_a_key_a_part():
    def loss_fn(params, model_state, batch, key, is_training):
        loss = jnp.sum(params["w"] * jax.random.normal(key, (4,)))
        return loss, ({}, {"visits": model_state["visits"] * 10 + batch["part"][0]})

    optimizer = optax.with_extra_args_support(optax.sgd(1.0))
    state = create_state(
        params={"w": jnp.zeros(4)},
        model_state={"visits": jnp.zeros(())},
        optimizer=optimizer,
        key=jax.random.key(1),
    )
    step = make_train_step(loss_fn, optimizer, MESH, accumulation_steps=2)
    batch = {"part": np.tile(np.array([1.0, 2.0], np.float32), 4)}  # rows are dealt out in turn
    new, _ = step(replicate(state, MESH), put(batch, num_parts=2))
    assert float(new.model_state["visits"]) == 12.0
    key = jax.random.fold_in(jax.random.key(1), 0)
    draws = [jax.random.normal(jax.random.fold_in(key, i), (4,)) for i in range(2)]
    np.testing.assert_allclose(new.params["w"], -(draws[0] + draws[1]) / 2, rtol=1e-6)


def test_each_step_draws_its_own_key():
    def loss_fn(params, model_state, batch, key, is_training):
        return jnp.sum(params["w"] * jax.random.normal(key, (2,))), ({}, model_state)

    optimizer = optax.with_extra_args_support(optax.sgd(1.0))
    key = jax.random.key(1)
    state = create_state(params={"w": jnp.zeros(2)}, optimizer=optimizer, key=key)
    step = make_train_step(loss_fn, optimizer, MESH)
    state, total = replicate(state, MESH), np.zeros(2)
    for i in range(3):
        state, _ = step(state, put({"x": np.zeros(4, np.float32)}))
        total -= np.asarray(jax.random.normal(jax.random.fold_in(key, i), (2,)))
        np.testing.assert_allclose(state.params["w"], total, rtol=1e-5)


@pytest.mark.parametrize("of_loss", [True, False])
def test_a_broken_step_changes_nothing_and_freezes(of_loss):
    loss_fn = poisoned(toy.make_loss(dropout=0.2), of_loss=of_loss, of_gradient=not of_loss)
    step, state = make(loss_fn, spec=OptimizerSpec(name="radam"))
    state, _ = step(state, put(with_flag(toy.make_batch(0), False)))
    before = toy.flat(state)
    state, report = step(state, put(with_flag(toy.make_batch(1), True)))
    assert not report.is_applied and not report.is_overflow
    for _ in range(2):  # good batches follow: still frozen at the same step
        state, report = step(state, put(with_flag(toy.make_batch(2), False)))
        assert not report.is_applied and float(report.sums.weight) == 0.0
    after = toy.flat(state)
    flags = {name: after.pop(name) for name in (".is_loss_broken", ".is_gradient_broken")}
    assert flags == {".is_loss_broken": of_loss, ".is_gradient_broken": not of_loss}
    for name in after:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_an_overflow_is_reported_and_the_state_is_not_frozen():
    loss_fn = poisoned(toy.make_loss(), of_loss=False, of_gradient=True)
    step, state = make(loss_fn, when_gradient_breaks="report")
    before = toy.flat(state)
    state, report = step(state, put(with_flag(toy.make_batch(0), True)))
    assert report.is_overflow and not report.is_applied
    after = toy.flat(state)
    for name in after:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    state, report = step(state, put(with_flag(toy.make_batch(0), False)))
    assert report.is_applied and int(state.step) == 1


@pytest.mark.parametrize("reaction", ["freeze", "report"])
def test_a_frozen_state_keeps_its_reason(reaction):
    """Later failures are neither recorded nor reported as overflows to be repeated."""
    loss_fn = poisoned(toy.make_loss(), of_loss=False, of_gradient=True)
    step, state = make(loss_fn, when_gradient_breaks=reaction)
    state = state.replace(is_loss_broken=replicate(jnp.array(True), MESH))
    before = toy.flat(state)
    state, report = step(state, put(with_flag(toy.make_batch(0), True)))
    assert not report.is_applied and not report.is_overflow
    after = toy.flat(state)
    for name in after:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_a_broken_loss_is_no_overflow():
    loss_fn = poisoned(toy.make_loss(), of_loss=True, of_gradient=True)
    step, state = make(loss_fn, when_gradient_breaks="report")
    state, report = step(state, put(with_flag(toy.make_batch(0), True)))
    assert not report.is_overflow and bool(state.is_loss_broken)


def test_a_bad_micro_batch_discards_the_whole_step():
    loss_fn = poisoned(toy.make_loss(), of_loss=False, of_gradient=True)
    step, state = make(loss_fn, accumulation_steps=4)
    batch = with_flag(toy.make_batch(0), False)
    batch["bad"][2] = True
    state, report = step(state, put(batch, num_parts=4))
    assert not report.is_applied and bool(state.is_gradient_broken)


def test_the_second_gradient_of_sam_is_watched_too():
    """The gradient is not finite only at the perturbed parameters."""
    start = toy.make_params()["first"]["bias"]
    loss = toy.make_loss()

    @jax.custom_vjp
    def poison(x):
        return x

    poison.defvjp(lambda x: (x, x), lambda x, ct: (jnp.where(jnp.any(x != start), jnp.inf, ct),))

    def loss_fn(params, *args):
        bias = poison(params["first"]["bias"])
        return loss({**params, "first": {**params["first"], "bias": bias}}, *args)

    step, state = make(loss_fn, spec=OptimizerSpec(name="adam", sam_rho=0.1))
    state, report = step(state, put(toy.make_batch(0)))
    assert not report.is_applied and bool(state.is_gradient_broken)
    plain, state = make(loss_fn, spec=OptimizerSpec(name="adam"))
    assert plain(state, put(toy.make_batch(0)))[1].is_applied


def test_evaluation_weighs_a_padded_batch_by_what_it_holds():
    params, model_state, loss_fn = toy.make_params(), toy.make_model_state(), toy.make_loss()
    found = evaluate(
        make_eval_step(loss_fn, MESH),
        toy.eval_batches(),
        params=params,
        model_state=model_state,
        mesh=MESH,
    )
    rows = [toy.make_batch(9001), {k: v[:5] for k, v in toy.make_batch(9002).items()}]
    joined = {name: np.concatenate([part[name] for part in rows]) for name in ("x", "y")}
    loss, (metrics, _) = loss_fn(params, model_state, joined, jax.random.key(0), False)
    assert found["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert found["accuracy"] == pytest.approx(float(metrics["accuracy"]), rel=1e-6)


@pytest.mark.bad_input
def test_error_messages():
    with pytest.raises(ValueError, match="`batches` must yield at least one batch"):
        evaluate(make_eval_step(toy.make_loss(), MESH), [], params={}, model_state={}, mesh=MESH)
    with pytest.raises(ValueError, match="`when_gradient_breaks` must be one of .*'stop'"):
        make(when_gradient_breaks="stop")
    with pytest.raises(
        ValueError,
        match=r"multiple of 3 rows in each process \(1 devices x 3 micro-batches\); got 16",
    ):
        put(toy.make_batch(0), num_parts=3)
    with pytest.raises(ValueError, match=r"same number of rows; got \[2, 3\]"):
        put({"x": np.zeros((2, 1)), "y": np.zeros(3)})
    optimizer = optax.sgd(1.0)
    with pytest.raises(ValueError, match="`key` must be a typed key"):
        create_state(params={}, optimizer=optimizer, key=jnp.zeros(2, jnp.uint32))
    with pytest.raises(ValueError, match="`params` must be finite"):
        create_state(params={"w": jnp.array(jnp.nan)}, optimizer=optimizer, key=jax.random.key(0))
