"""Frozen parameters: never updated, not in the optimiser, and not differentiated."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import train
from tests.train import toy
from tests.train.test_loop import interrupt


def is_second(name):
    return name.startswith("second/")


def names(tree):
    return set(toy.flat(tree))


def test_parts_are_disjoint_and_merge_to_the_whole():
    params = toy.make_params()
    trained, frozen = train.split_params(params, is_second)
    assert names(trained) == {n for n in names(params) if "second" in n}
    assert names(trained) | names(frozen) == names(params)
    toy.assert_equal(train.merge_params(trained, frozen), params)
    toy.assert_equal(train.split_params(params, None)[0], params)


@pytest.mark.parametrize(
    "optimizer",
    [
        train.OptimizerSpec(name="adamw", weight_decay=0.1),
        train.OptimizerSpec(name="sgd", weight_decay=0.1, sam_rho=0.05),
    ],
    ids=["adamw", "sam"],
)
def test_frozen_parameters_do_not_move_and_have_no_state(optimizer):
    task = toy.make_task(is_trainable=is_second)
    result = toy.run(task, toy.make_spec(optimizer=optimizer))
    before, after = toy.flat(toy.make_params()), toy.flat(result.state.params)
    for name in before:
        assert np.array_equal(before[name], after[name]) == ("first" in name), name
    shapes = {leaf.shape for leaf in jax.tree.leaves(result.state.opt_state)}
    assert (toy.HIDDEN, toy.CLASSES) in shapes and (toy.FEATURES, toy.HIDDEN) not in shapes


def test_the_trained_part_moves_as_in_a_network_that_has_no_other():
    """Equals a run with the frozen layer as a constant; clipping sees the trained part only."""
    whole, loss = toy.make_params(), toy.make_loss(dropout=0.2)
    spec = toy.make_spec(
        optimizer=train.OptimizerSpec(name="sgd", clip_norm=0.05), accumulation_steps=2
    )

    def loss_of_second(second, *args):
        return loss({"first": whole["first"], **second}, *args)

    expected = toy.run(
        toy.make_task(loss_fn=loss_of_second), spec, params={"second": whole["second"]}
    )
    got = toy.run(toy.make_task(loss_fn=loss, is_trainable=is_second), spec)
    for name, value in toy.flat(expected.state.params).items():
        np.testing.assert_allclose(toy.flat(got.state.params)[name], value, rtol=1e-5, atol=1e-7)


def test_nothing_is_kept_for_the_gradient_of_frozen_parameters():
    def residual_bytes(is_trainable):
        trained, frozen = train.split_params(toy.make_params(), is_trainable)

        def loss(trained, frozen):
            params = train.merge_params(trained, frozen)
            h = jnp.tanh(jnp.ones((512, toy.FEATURES)) @ params["first"]["kernel"])
            return jnp.sum(h @ params["second"]["kernel"])

        kept = jax.eval_shape(lambda t, f: jax.vjp(lambda t: loss(t, f), t)[1], trained, frozen)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))

    hidden = 512 * toy.HIDDEN * 4
    assert residual_bytes(is_second) < 1.2 * hidden < 1.9 * hidden < residual_bytes(None)


def test_a_stopped_run_goes_on_bit_exactly(tmp_path):
    poisoned = toy.make_batches(poison={7: interrupt(signal.SIGTERM)})
    with pytest.raises(train.TrainingInterrupted):
        toy.run(toy.make_task(batches=poisoned, is_trainable=is_second), work_dir=tmp_path)
    task = toy.make_task(is_trainable=is_second)
    toy.assert_equal(toy.run(task, work_dir=tmp_path).state, toy.run(task).state)


@pytest.mark.bad_input
def test_nothing_to_train():
    with pytest.raises(ValueError, match="`is_trainable` must choose at least one parameter; got"):
        toy.run(toy.make_task(is_trainable=lambda name: False))
