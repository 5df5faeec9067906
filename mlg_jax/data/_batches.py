"""Assigns examples to batches by pure functions of seeds, so that a run can resume at any step."""

import numpy as np

from mlg_jax._checks import check_integer


def batch_indices(seed: int, epoch: int, num_examples: int, batch_size: int) -> np.ndarray:
    """Example indices of every training batch of an epoch: a random permutation, cut into batches.

    Examples that do not fill a last batch are dropped. The result depends on the arguments only,
    so a run that resumes at any step sees the same batches.

    Args:
        seed: seed of the run.
        epoch: counted from 0.
        num_examples: size of the training split.
        batch_size: global batch size, over all devices.

    Returns:
        int32 [num_examples // batch_size, batch_size].

    Raises:
        TypeError, ValueError: an argument is not an integer or is out of range; `batch_size` must
            not exceed `num_examples`.
    """
    check_integer("seed", seed, 0)
    check_integer("epoch", epoch, 0)
    check_integer("num_examples", num_examples, 1)
    check_integer("batch_size", batch_size, 1, num_examples)
    steps = num_examples // batch_size
    order = np.random.default_rng((seed, epoch)).permutation(num_examples)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def evaluation_indices(num_examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every example once, in order; the last batch is padded with example 0 and masked.

    Args:
        num_examples: size of the split.
        batch_size: global batch size, over all devices.

    Returns:
        `(indices, mask)`: int32 and bool [ceil(num_examples / batch_size), batch_size]; the mask
        is False for padding.

    Raises:
        TypeError, ValueError: an argument is not an integer or is out of range.
    """
    check_integer("num_examples", num_examples, 1)
    check_integer("batch_size", batch_size, 1)
    steps = -(-num_examples // batch_size)
    position = np.arange(steps * batch_size).reshape(steps, batch_size)
    mask = position < num_examples
    return np.where(mask, position, 0).astype(np.int32), mask


def _limited(indices: np.ndarray, limit: int | None) -> np.ndarray:
    """The first `limit` of `indices`, sorted, so that files are read sequentially."""
    return np.sort(indices[:limit])


def holdout_indices(
    num_examples: int,
    num_validation: int,
    seed: int,
    *,
    train_limit: int | None = None,
    validation_limit: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Splits a training set into training and validation examples at random.

    The limits apply after the split: they shrink the two parts, but never move an example from one
    to the other.

    Args:
        num_examples: size of the training set.
        num_validation: size of the validation split; may be 0.
        seed: seed of the random split.
        train_limit: keep a random subset of this many training examples; None keeps all.
        validation_limit: the same for the validation examples.

    Returns:
        `(train, validation)`: two sorted, disjoint int64 index arrays.

    Raises:
        TypeError, ValueError: an argument is not an integer or is out of range; at least one
            training example must be left.
    """
    check_integer("num_examples", num_examples, 1)
    check_integer("num_validation", num_validation, 0, num_examples - 1)
    order = np.random.default_rng(seed).permutation(num_examples)
    train = _limited(order[num_validation:], train_limit)
    return train, _limited(order[:num_validation], validation_limit)


def limited_indices(num_examples: int, limit: int | None, seed: int) -> np.ndarray:
    """A random subset of `limit` of the indices below `num_examples`, sorted, int64; None: all."""
    return _limited(np.random.default_rng(seed).permutation(num_examples), limit)
