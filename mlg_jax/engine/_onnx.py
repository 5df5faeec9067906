"""Exports the network of a packed file as ONNX, which runs without Python."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import export

from mlg_jax._checks import check_choice, check_instance, check_integer
from mlg_jax._platform import PORTABLE, traced_for
from mlg_jax.engine._onnx_graph import Graph, Value
from mlg_jax.engine._onnx_translate import translate
from mlg_jax.engine._predictor import Predictor
from mlg_jax.engine._stablehlo import IMAGE_DTYPES, chosen_implementations
from mlg_jax.export import PackedModel
from mlg_jax.models import ImplementationChoice

LAYOUTS = {"NHWC": (0, 1, 2, 3), "NCHW": (0, 3, 1, 2)}
MANIFEST = "mlg_jax"  # the key of the packed file's manifest in the model's metadata


def export_onnx(
    packed: PackedModel,
    *,
    images: str | None = None,
    layout: str = "NHWC",
    implementation: ImplementationChoice = "auto",
    batch_size: int = 1,
    model: nn.Module | None = None,
    name: str = "the packed model",
) -> bytes:
    """Exports a network as ONNX: its factors as integer codes, its kernels never stored.

    Codes of at most 4 bits are stored as uint4, wider ones as uint8 or uint16, and decoded by
    `DequantizeLinear`. Norms are folded into the layers before them where every norm has one.

    Args:
        packed: from `read_packed`.
        images: the input: `uint8` for pixels, to which the graph applies the stored preprocessing,
            or `float32` for normalised images; None is `uint8` if the file has a preprocessing.
        layout: of the input: `NHWC` or `NCHW`.
        implementation: see `load_packed`.
        batch_size: the batch size for which `auto` chooses implementations; the graph accepts any.
        model: see `load_packed`.
        name: the file, for messages.

    Returns:
        A serialised `ModelProto` of opset 21, with one input, `images`, `[b, height, width,
        channels]` or in the other layout, and one output, `logits`, float32 `[b, num_classes]`. Its
        metadata holds the file's manifest as JSON, under the key `mlg_jax`.

    Raises:
        ImportError: the package `onnx` is missing.
        TypeError, ValueError: an argument is invalid, or `images` is `uint8` although the file has
            no preprocessing.
        UnsupportedOperationError: the network computes something that cannot be expressed.
        PackedFileError: the tensors do not fit the model, or the manifest is invalid.

    Examples:
        >>> data = export_onnx(read_packed("model.mlg"))  # doctest: +SKIP
        >>> session = onnxruntime.InferenceSession(data)  # doctest: +SKIP
        >>> (logits,) = session.run(None, {"images": pixels})  # doctest: +SKIP

    Reference: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html.
    """
    check_instance("packed", packed, PackedModel)
    check_choice("layout", layout, LAYOUTS)
    check_integer("batch_size", batch_size, 1)
    if images is not None:
        check_choice("images", images, IMAGE_DTYPES)
    onnx = _onnx()
    manifest, packed = packed.manifest, _in_float32(packed)
    chosen = chosen_implementations(packed, model, implementation, batch_size, name)

    def trace(fold: bool) -> tuple[Predictor, Any]:
        predictor = Predictor(
            packed, residency="codes", fold=fold, implementation=chosen, model=model, name=name
        )
        return predictor, _traced(predictor, images)

    predictor, program = _first_that_folds(trace)
    graph = Graph(onnx)
    shape, dtype = program.in_avals[-1].shape, program.in_avals[-1].dtype
    order = LAYOUTS[layout]
    arrays = [np.asarray(array) for array in predictor.program[1]]
    inputs = [Value(array.shape, host=array) for array in arrays]
    inputs.append(Value(shape, name="images", order=order))
    (logits,) = translate(graph, program, inputs)
    graph.nodes.append(onnx.helper.make_node("Identity", [graph.name_of(logits)], ["logits"]))
    proto = graph.model(
        [_described(onnx, "images", [shape[axis] for axis in order], dtype)],
        [_described(onnx, "logits", logits.shape, np.float32)],
        **{MANIFEST: json.dumps(manifest)},
    )
    return bytes(proto.SerializeToString())


def _onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
    except ImportError as error:
        raise ImportError(f"ONNX needs `pip install mlg-jax[onnx]`. {error}") from None
    return onnx


def _in_float32(packed: PackedModel) -> PackedModel:
    """The model to be computed in float32: runtimes know few operations in bfloat16."""
    spec = packed.manifest.get("model")
    if not isinstance(spec, dict) or "dtype" not in spec:
        return packed
    manifest = {**packed.manifest, "model": {**spec, "dtype": "float32"}}
    return dataclasses.replace(packed, manifest=manifest)


def _traced(predictor: Predictor, images: str | None) -> Any:
    """The program for any number of images, without what is special to CPUs or GPUs."""
    preprocessing = predictor.preprocessing
    if images is None:
        images = "float32" if preprocessing is None else "uint8"
    if images == "uint8" and preprocessing is None:
        raise TypeError(
            "`images` must be 'float32', as the file has no preprocessing; got 'uint8'."
        )
    (batch,) = export.symbolic_shape("b")
    pixels = jax.ShapeDtypeStruct((batch, *predictor.image_shape), jnp.dtype(images))
    forward, arrays = predictor.program
    with traced_for(PORTABLE):
        return jax.make_jaxpr(forward)(arrays, pixels)


def _first_that_folds(trace: Callable[[bool], Any]) -> Any:
    """`trace(True)`, or `trace(False)` if a norm has no layer that could absorb it."""
    try:
        return trace(True)
    except ValueError as error:
        if not str(error).startswith("`fold` must be False"):
            raise
        return trace(False)


def _described(onnx: Any, name: str, shape: Any, dtype: Any) -> Any:
    number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    sizes = [size if isinstance(size, int) else str(size) for size in shape]
    return onnx.helper.make_tensor_value_info(name, number, sizes)
