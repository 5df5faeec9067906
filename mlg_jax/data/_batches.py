"""Which example is in which batch: pure functions of seeds, so that any step can be resumed."""

import numpy as np

from mlg_jax._checks import check_integer


def batch_indices(seed: int, epoch: int, num_examples: int, batch_size: int) -> np.ndarray:
    """The examples of every training batch of an epoch: a permutation, its remainder dropped.

    Depends on nothing but the arguments, so a run resumed at any step sees the same batches.

    Args:
        seed: of the run.
        epoch: counted from 0.
        num_examples: in the training split.
        batch_size: over all devices.

    Returns:
        int32 [num_examples // batch_size, batch_size].

    Raises:
        TypeError, ValueError: an argument that is no integer or out of range, a batch larger than
            the split included.
    """
    check_integer("seed", seed, 0)
    check_integer("epoch", epoch, 0)
    check_integer("num_examples", num_examples, 1)
    check_integer("batch_size", batch_size, 1, num_examples)
    steps = num_examples // batch_size
    order = np.random.default_rng((seed, epoch)).permutation(num_examples)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def evaluation_indices(num_examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every example once, in order; the last batch is filled up with example 0 and masked.

    Args:
        num_examples: in the split.
        batch_size: over all devices.

    Returns:
        `(indices, mask)`: int32 and bool [ceil(num_examples / batch_size), batch_size]; the mask
        is False for the filling.

    Raises:
        TypeError, ValueError: an argument that is no integer or out of range.
    """
    check_integer("num_examples", num_examples, 1)
    check_integer("batch_size", batch_size, 1)
    steps = -(-num_examples // batch_size)
    position = np.arange(steps * batch_size).reshape(steps, batch_size)
    mask = position < num_examples
    return np.where(mask, position, 0).astype(np.int32), mask


def _limited(indices: np.ndarray, limit: int | None) -> np.ndarray:
    """The first `limit` of `indices`, sorted, so that files are read in their order."""
    return np.sort(indices[:limit])


def holdout_indices(
    num_examples: int,
    num_validation: int,
    seed: int,
    *,
    train_limit: int | None = None,
    validation_limit: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Holds a random `num_validation` examples out of a training set.

    Limits act after the split, so they change neither what is held out nor its disjointness.

    Args:
        num_examples: in the training set.
        num_validation: to hold out; 0 holds out none.
        seed: of the choice.
        train_limit: how many of the remaining examples to keep, at random; None keeps all.
        validation_limit: the same for those held out.

    Returns:
        `(train, validation)`: two sorted, disjoint int64 index arrays.

    Raises:
        TypeError, ValueError: an argument out of range, or nothing left to train on.
    """
    check_integer("num_examples", num_examples, 1)
    check_integer("num_validation", num_validation, 0, num_examples - 1)
    order = np.random.default_rng(seed).permutation(num_examples)
    train = _limited(order[num_validation:], train_limit)
    return train, _limited(order[:num_validation], validation_limit)


def limited_indices(num_examples: int, limit: int | None, seed: int) -> np.ndarray:
    """A random `limit` of `num_examples` indices, sorted, int64; None is all of them."""
    return _limited(np.random.default_rng(seed).permutation(num_examples), limit)
