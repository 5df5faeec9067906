"""A test split for data sets without one: a fixed random fifth of each class."""

import dataclasses

import numpy as np

from mlg_jax.data._examples import Source, SubsetExamples

_SHARE = 0.2
_SEED = 0  # a constant, so that results of different runs are comparable


def stratified_split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits indices in two; of `n` examples of a class, `round(share * n)` go to the second part.

    Args:
        labels: integers [n].
        share: fraction of each class in the second part, in (0, 1).
        seed: seed of the random split.

    Returns:
        `(kept, given)`: two sorted, disjoint int64 index arrays that together cover all examples.
    """
    rng = np.random.default_rng(seed)
    is_given = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_given[members[: round(share * len(members))]] = True
    return np.flatnonzero(~is_given), np.flatnonzero(is_given)


def split_source(source: Source) -> Source:
    """Moves a fifth of each class from the training split to the test split, with a fixed seed."""
    kept, given = stratified_split(source.train.read_labels(), _SHARE, _SEED)
    return dataclasses.replace(
        source,
        train=SubsetExamples(source.train, kept),
        test=SubsetExamples(source.train, given),
    )
