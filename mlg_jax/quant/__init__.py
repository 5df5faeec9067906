"""Quantisers with straight-through gradients, and their integer codes."""

from mlg_jax.quant._activation import ActivationRange as ActivationRange
from mlg_jax.quant._activation import initial_range as initial_range
from mlg_jax.quant._activation import quantize_activation as quantize_activation
from mlg_jax.quant._activation import update_range as update_range
from mlg_jax.quant._clip import REPRESENTABLE as REPRESENTABLE
from mlg_jax.quant._clip import TANH_SCHEMES as TANH_SCHEMES
from mlg_jax.quant._clip import clip_to_grid as clip_to_grid
from mlg_jax.quant._clip import round_clipped as round_clipped
from mlg_jax.quant._codes import QuantizedTensor as QuantizedTensor
from mlg_jax.quant._codes import decode as decode
from mlg_jax.quant._codes import encode as encode
from mlg_jax.quant._fake import fake_quantize as fake_quantize
from mlg_jax.quant._fake import unquantize as unquantize
from mlg_jax.quant._schemes import wide as wide
from mlg_jax.quant._spec import ACTIVATION_SCHEMES as ACTIVATION_SCHEMES
from mlg_jax.quant._spec import MAX_BITS as MAX_BITS
from mlg_jax.quant._spec import MIN_BITS as MIN_BITS
from mlg_jax.quant._spec import ActivationSpec as ActivationSpec
from mlg_jax.quant._spec import QuantSpec as QuantSpec
from mlg_jax.quant._spec import recommended_ratio as recommended_ratio
from mlg_jax.quant._together import fake_quantize_together as fake_quantize_together
