"""Rematerialisation: which values are saved for the backward pass, and how they are stored."""

from mlg_jax.remat._calibrate import choose_capacities as choose_capacities
from mlg_jax.remat._calibrate import measure_densities as measure_densities
from mlg_jax.remat._checkpoint import ResidualPolicy as ResidualPolicy
from mlg_jax.remat._codec import BitmapCodec as BitmapCodec
from mlg_jax.remat._codec import Codec as Codec
from mlg_jax.remat._codec import GroupCodec as GroupCodec
from mlg_jax.remat._codec import Identity as Identity
from mlg_jax.remat._policy import NO_REMAT as NO_REMAT
from mlg_jax.remat._policy import PRESETS as PRESETS
from mlg_jax.remat._policy import RematSpec as RematSpec
from mlg_jax.remat._transform import checkpoint as checkpoint
from mlg_jax.remat._transform import checkpoint_module as checkpoint_module
from mlg_jax.remat._transform import save_bitmaps as save_bitmaps
