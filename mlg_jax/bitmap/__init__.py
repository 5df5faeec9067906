"""Exact storage of sparse activations: one bit an entry, and the values that are not zero."""

from mlg_jax.bitmap._format import Bitmap as Bitmap
from mlg_jax.bitmap._ops import pack as pack
from mlg_jax.bitmap._ops import unpack as unpack
