"""Running statistics of norms, estimated again for a network whose kernels have changed."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from mlg_jax._types import Array, Float, Key
from mlg_jax.layers import forward, random_streams

_NUM_PASSES = 40  # updates of running averages with momentum 0.9: 0.015 of the old value is left
_BATCH_SIZE = 64


def estimate_statistics(
    model: nn.Module, variables: Mapping[str, Any], images: Float[Array, "n h w c"]
) -> dict[str, Any]:
    """Returns `variables` with running statistics estimated over `images`, `[N, H, W, C]`.

    The model runs in training mode over 40 random batches of at most 64 images.
    """
    state = {name: value for name, value in variables.items() if name != "params"}
    if not state:
        return dict(variables)

    apply = forward(model, train=True)

    @jax.jit
    def update(state: Any, batch: Array, key: Key) -> Any:
        collections = {"params": variables["params"], **state}
        return apply(collections, batch, mutable=list(state), rngs=random_streams(key))[1]

    order = np.random.default_rng(0)
    for step in range(_NUM_PASSES):
        rows = order.choice(len(images), min(_BATCH_SIZE, len(images)), replace=False)
        state = dict(update(state, np.asarray(images)[rows], jax.random.key(step)))
    return {"params": variables["params"], **state}
