"""Allocation under a budget: the knapsack against brute force, bytes against the size report."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlg_jax import GenerationSpec
from mlg_jax.compress import Candidate, LayerChoices, Sensitivity, allocate
from mlg_jax.compress._allocate import knapsack

KB = 8 * 1024


def least_harm(sizes, harms, budget):
    """The smallest total harm over all combinations; infinite if none fits the budget."""
    combinations = itertools.product(*(range(len(row)) for row in sizes))
    return min(
        (
            sum(row[i] for row, i in zip(harms, picks, strict=True))
            for picks in combinations
            if total(sizes, picks) <= budget
        ),
        default=np.inf,
    )


def total(rows, picks):
    return sum(row[i] for row, i in zip(rows, picks, strict=True))


@st.composite
def problems(draw, largest=60):
    """Random sizes and harms, and a budget that at least the smallest choices fit."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    sizes = [draw(st.lists(st.integers(1, largest), min_size=n, max_size=n)) for n in lengths]
    harms = [draw(st.lists(st.integers(0, 50), min_size=n, max_size=n)) for n in lengths]
    budget = sum(map(min, sizes)) + draw(st.integers(0, 2 * largest))
    return sizes, harms, budget


@given(problems())
def test_the_knapsack_is_that_of_brute_force(problem):
    sizes, harms, budget = problem
    picks = knapsack(sizes, harms, budget)
    assert total(sizes, picks) <= budget
    assert total(harms, picks) == least_harm(sizes, harms, budget)


@given(problems(largest=2000))
def test_coarse_cells_keep_the_budget_and_lose_little(problem):
    sizes, harms, budget = problem
    picks = knapsack(sizes, harms, budget, num_cells=50)
    cell = -(-(budget - sum(map(min, sizes))) // 50)
    assert total(sizes, picks) <= budget
    # Rounding wastes less than one cell per row, and the end of the table less than one more.
    assert total(harms, picks) <= least_harm(sizes, harms, budget - (len(sizes) + 1) * cell)


def test_many_choices_just_below_two_cells_keep_the_budget():
    """If 200 were rounded down to one cell of 100, all 50 would seem to fit."""
    picks = knapsack([[1, 200]] * 50, [[1.0, 0.0]] * 50, 50 + 5000, num_cells=50)
    assert sum(picks) == 25


def sensitivity(*layers, fixed_bits=100):
    """A `Sensitivity` from `(name, [(bits, kl), ...])` per layer."""
    spec = GenerationSpec.from_bits(2, 4, 3, 6, 3)
    rows = tuple(
        LayerChoices(name, tuple(Candidate(spec, bits, 0.5, kl) for bits, kl in pairs))
        for name, pairs in layers
    )
    return Sensitivity(rows, fixed_bits, 8)


def test_a_sensitive_layer_gets_the_bits():
    layers = [("a", [(1000, 0.5), (2000, 0.1)]), ("b", [(1000, 5.0), (2000, 1.0)])]
    allocation = allocate(sensitivity(*layers), target_kb=3100 / KB)
    assert [c.num_bits for c in allocation.choices.values()] == [1000, 2000]
    assert allocation.num_bits == 3100 and allocation.kl == 1.5
    assert list(allocation.generation) == ["a", "b"] and allocation.weight_bits == 8
    assert "| b | 2-4-3-6-3 | 0.24 | 0.500 | 1.0000 |" in allocation.to_markdown()


def test_a_choice_that_costs_more_and_harms_more_is_left():
    layers = [("a", [(1000, 0.5), (2000, 0.6)])]
    assert allocate(sensitivity(*layers), target_kb=100.0).num_bits == 1100


@pytest.mark.bad_input
def test_the_smallest_target_is_said_and_can_be_reached():
    problem = sensitivity(("a", [(5000, 0.5)]), ("b", [(3001, 0.1), (9000, 0.0)]))
    with pytest.raises(ValueError, match=r"`target_kb` must be at least 0.99, the smallest .*0.98"):
        allocate(problem, target_kb=0.98)
    assert allocate(problem, target_kb=0.99).num_bits == 8101


@pytest.mark.bad_input
@pytest.mark.parametrize("target, error", [(0, ValueError), ("1", TypeError), (np.nan, ValueError)])
def test_bad_targets(target, error):
    with pytest.raises(error, match="`target_kb` must be a number in"):
        allocate(sensitivity(("a", [(10, 0.0)])), target_kb=target)


@pytest.mark.bad_input
def test_bad_sensitivity():
    with pytest.raises(TypeError, match="`sensitivity` must be Sensitivity; got"):
        allocate([], target_kb=1.0)
