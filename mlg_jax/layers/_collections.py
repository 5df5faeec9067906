"""The collections by which layers describe themselves, and by which they are handed factors."""

from flax import linen as nn

from mlg_jax.kernels import LayerRecord

COLLECTION = "layer_records"
FACTORS = "factors"  # the collection of what layers take as it is, in place of their parameters
FOLDED = "is_folded"  # there, of a norm that its convolution has taken up


def record_layer(module: nn.Module, record: LayerRecord) -> None:
    """Hands in a layer's record; heard only by a call with that collection mutable."""
    if not module.is_initializing():
        module.sow(COLLECTION, "record", record, init_fn=lambda: None, reduce_fn=lambda _, r: r)
