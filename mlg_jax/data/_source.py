"""What every kind of source opens to."""

import dataclasses

from mlg_jax.data._examples import Examples


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """An opened data set.

    Args:
        class_names: one a label.
        train: the training examples, before any is held out for validation.
        test: the test examples. They are checked when they are opened, and otherwise read at the
            end of a run only.
    """

    class_names: tuple[str, ...]
    train: Examples
    test: Examples
