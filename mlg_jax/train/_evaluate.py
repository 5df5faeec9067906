"""Averages metrics over a whole data set."""

from collections.abc import Iterable
from typing import Any

from jax.sharding import Mesh

from mlg_jax.train._mesh import shard_batch
from mlg_jax.train._metrics import MetricSums, add_sums
from mlg_jax.train._step import EvalStep


def evaluate(
    eval_step: EvalStep,
    batches: Iterable[Any],
    *,
    params: Any,
    model_state: Any,
    mesh: Mesh,
) -> dict[str, float]:
    """Averages metrics over all examples; waits for the device once, at the end.

    Args:
        eval_step: as returned by `make_eval_step`.
        batches: pytrees of arrays `[n, ...]`. If a batch is a mapping with an entry "mask" `[n]`,
            only the rows it marks count, so that padding is ignored.
        params: the parameters.
        model_state: the model state.
        mesh: the mesh of `eval_step`.

    Returns:
        The averages by name, "loss" among them.

    Raises:
        ValueError: `batches` is empty, or the rows do not divide evenly over the devices.
    """
    sums: MetricSums | None = None
    for batch in batches:
        new = eval_step(params, model_state, shard_batch(batch, mesh))
        sums = new if sums is None else add_sums(sums, new)
    if sums is None:
        raise ValueError("`batches` must yield at least one batch; got none.")
    return sums.means()
