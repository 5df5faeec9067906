"""Inference from a packed file: save a trained model, load it, predict."""

from mlg_jax._labels import Label as Label
from mlg_jax.engine._batching import BATCH_SIZES as BATCH_SIZES
from mlg_jax.engine._files import load_packed as load_packed
from mlg_jax.engine._files import save_packed as save_packed
from mlg_jax.engine._images import ImagePreprocessing as ImagePreprocessing
from mlg_jax.engine._manifest import Manifest as Manifest
from mlg_jax.engine._materialized import dense_state as dense_state
from mlg_jax.engine._materialized import trained_network as trained_network
from mlg_jax.engine._onnx import LAYOUTS as LAYOUTS
from mlg_jax.engine._onnx import export_onnx as export_onnx
from mlg_jax.engine._onnx_operations import (
    UnsupportedOperationError as UnsupportedOperationError,
)
from mlg_jax.engine._predictor import Predictor as Predictor
from mlg_jax.engine._resident import RESIDENCIES as RESIDENCIES
from mlg_jax.engine._stablehlo import IMAGE_DTYPES as IMAGE_DTYPES
from mlg_jax.engine._stablehlo import PLATFORMS as PLATFORMS
from mlg_jax.engine._stablehlo import WEIGHTS as WEIGHTS
from mlg_jax.engine._stablehlo import export_stablehlo as export_stablehlo
from mlg_jax.engine._summary import FileSummary as FileSummary
from mlg_jax.engine._summary import LayerSummary as LayerSummary
from mlg_jax.engine._summary import summarize as summarize
from mlg_jax.engine._torch import import_torch as import_torch
