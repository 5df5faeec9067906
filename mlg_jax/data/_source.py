"""What every kind of source opens to."""

import dataclasses
from collections.abc import Callable

from mlg_jax.data._examples import Examples


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """An opened data set.

    Args:
        class_names: one a label.
        train: the training examples, before any is held out for validation.
        open_test: opens the test examples; nothing else reads them.
    """

    class_names: tuple[str, ...]
    train: Examples
    open_test: Callable[[], Examples]
