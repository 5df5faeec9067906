"""Exact storage of sparse activations: one bit per entry, and the non-zero values."""

from mlg_jax.bitmap._format import Bitmap as Bitmap
from mlg_jax.bitmap._ops import pack as pack
from mlg_jax.bitmap._ops import unpack as unpack
