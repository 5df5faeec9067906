"""Batches are a function of seed, epoch and step; splits are disjoint."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mlg_jax.data import batch_indices, evaluation_indices, holdout_indices
from mlg_jax.data._batches import limited_indices

counts = st.integers(1, 200)


@hypothesis.given(st.integers(0, 5), st.integers(0, 5), counts, st.data())
def test_an_epoch_is_a_permutation_without_its_remainder(seed, epoch, num, data):
    size = data.draw(st.integers(1, num))
    rows = batch_indices(seed, epoch, num, size)
    assert rows.shape == (num // size, size) and rows.dtype == np.int32
    assert len(np.unique(rows)) == rows.size
    assert rows.min() >= 0 and rows.max() < num
    np.testing.assert_array_equal(rows, batch_indices(seed, epoch, num, size))


def test_seeds_and_epochs_give_different_orders():
    orders = {batch_indices(s, e, 50, 50).tobytes() for s in range(3) for e in range(3)}
    assert len(orders) == 9


@hypothesis.given(counts, counts)
def test_evaluation_sees_every_example_once(num, size):
    rows, mask = evaluation_indices(num, size)
    assert rows.shape == mask.shape == (-(-num // size), size)
    np.testing.assert_array_equal(rows[mask], np.arange(num))
    assert (rows[~mask] == 0).all()
    assert mask[:-1].all() and mask[-1, 0]  # only the last batch is padded, and only in part


@hypothesis.given(st.integers(2, 200), st.integers(0, 5), st.data())
def test_held_out_examples_are_not_trained_on(num, seed, data):
    num_validation = data.draw(st.integers(0, num - 1))
    train, validation = holdout_indices(num, num_validation, seed)
    assert len(validation) == num_validation
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(num))
    limits = {"train_limit": data.draw(counts), "validation_limit": data.draw(counts)}
    few_train, few_validation = holdout_indices(num, num_validation, seed, **limits)
    assert set(few_train) <= set(train) and set(few_validation) <= set(validation)
    assert len(few_train) == min(limits["train_limit"], len(train))
    assert len(few_validation) == min(limits["validation_limit"], len(validation))


def test_holdout_depends_on_its_seed_and_is_not_a_prefix():
    first = holdout_indices(100, 20, 0)[1]
    np.testing.assert_array_equal(first, holdout_indices(100, 20, 0)[1])
    assert set(first) != set(holdout_indices(100, 20, 1)[1])
    assert first.max() > 50 and (np.diff(first) > 0).all()


def test_limited_indices():
    np.testing.assert_array_equal(limited_indices(7, None, 0), np.arange(7))
    few = limited_indices(100, 10, 0)
    assert len(np.unique(few)) == 10 and few.max() > 50


@pytest.mark.bad_input
def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`batch_size` must be an integer in \[1, 10\]; got 11"):
        batch_indices(0, 0, 10, 11)
    with pytest.raises(ValueError, match="`epoch` must be an integer >= 0; got -1"):
        batch_indices(0, -1, 10, 2)
    with pytest.raises(TypeError, match="`seed` must be an integer >= 0; got 0.5"):
        batch_indices(0.5, 0, 10, 2)
    with pytest.raises(ValueError, match="`num_examples` must be an integer >= 1; got 0"):
        evaluation_indices(0, 2)
    message = r"`num_validation` must be an integer in \[0, 9\]; got 10"
    with pytest.raises(ValueError, match=message):
        holdout_indices(10, 10, 0)
