"""The variable collections of layer records and of factors that are given to layers."""

from flax import linen as nn

from mlg_jax.kernels import LayerRecord

COLLECTION = "layer_records"
FACTORS = "factors"  # values that layers use unchanged, in place of their parameters
FOLDED = "is_folded"  # in that collection: marks a norm that is folded into its convolution


def record_layer(module: nn.Module, record: LayerRecord) -> None:
    """Stores a layer's record, if the call has the collection `layer_records` as mutable."""
    if not module.is_initializing():
        module.sow(COLLECTION, "record", record, init_fn=lambda: None, reduce_fn=lambda _, r: r)
