"""Packed model files, and conversion to and from PyTorch state dicts."""

from mlg_jax.export._archive import PACKED_SUFFIX as PACKED_SUFFIX
from mlg_jax.export._archive import read_packed as read_packed
from mlg_jax.export._archive import write_packed as write_packed
from mlg_jax.export._convert import built_kernels as built_kernels
from mlg_jax.export._convert import from_torch as from_torch
from mlg_jax.export._convert import to_torch as to_torch
from mlg_jax.export._convert import torch_num_classes as torch_num_classes
from mlg_jax.export._index import PackedFileError as PackedFileError
from mlg_jax.export._packed import PackedModel as PackedModel
from mlg_jax.export._packed import decode_variables as decode_variables
from mlg_jax.export._packed import pack_variables as pack_variables
from mlg_jax.export._packed import round_floats as round_floats
from mlg_jax.export._packed import unpack_variables as unpack_variables
from mlg_jax.export._tensor import PackedTensor as PackedTensor
from mlg_jax.export._tensor import decode_tensor as decode_tensor
from mlg_jax.export._tensor import to_codes as to_codes
from mlg_jax.export._torch_file import SUFFIXES as SUFFIXES
from mlg_jax.export._torch_file import TorchFileError as TorchFileError
from mlg_jax.export._torch_file import read_torch as read_torch
from mlg_jax.export._torch_file import write_torch as write_torch
