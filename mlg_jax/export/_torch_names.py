"""What PyTorch's networks call the layers of ours: torchvision's names, and the original's."""

import itertools
import re
from collections.abc import Callable, Sequence

from mlg_jax._types import LayerRecord

Names = tuple[str, ...]  # of one module, in the order of preference; the first is written
_HIDDEN = {3: ("classifier.1", "classifier.4"), 5: ("classifier.0", "classifier.3")}  # by stages
# The number of each fire module in `features`, where poolings stand between them.
_FIRES = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}


def torch_names(records: Sequence[LayerRecord], *, has_norms: bool) -> dict[str, Names]:
    """Names of the PyTorch modules, by the path of our layer.

    Args:
        records: of a network of `mlg_jax.create_model`.
        has_norms: whether norms follow the convolutions there; VGG's numbers depend on it.

    Returns:
        Every convolution, dense layer, and norm behind a convolution, be it there or not.

    Raises:
        ValueError: a network of another architecture.
    """
    layers = [record.name for record in records if record.kind != "norm"]
    for pattern, family in _FAMILIES:
        if any(re.fullmatch(pattern, layer) for layer in layers):
            return family(layers, has_norms)
    raise ValueError(
        "`records` must be those of a ResNet, VGG, MobileNetV2, AlexNet or SqueezeNet of "
        f"`create_model`; got layers {layers[:5]}."
    )


def norm_of(conv: str) -> str:
    """The path of the norm behind a convolution."""
    scope, slash, layer = conv.rpartition("/")
    return scope + slash + layer.replace("conv", "norm")


def _resnet(layers: Sequence[str], has_norms: bool) -> dict[str, Names]:
    names = _pair("stem_conv", ("conv1",), ("bn1",)) | {"classifier": ("fc", "linear")}
    for layer in layers:
        if match := re.fullmatch(r"stage(\d+)_block(\d+)/(\w+)", layer):
            block = f"layer{match[1]}.{int(match[2]) - 1}"
            if match[3] == "shortcut_conv":
                scopes = (f"{block}.downsample", f"{block}.shortcut")
                names |= _pair(layer, *(tuple(f"{s}.{i}" for s in scopes) for i in (0, 1)))
            else:
                number = match[3].removeprefix("conv")
                names |= _pair(layer, (f"{block}.conv{number}",), (f"{block}.bn{number}",))
    return names


def _mobilenet_v2(layers: Sequence[str], has_norms: bool) -> dict[str, Names]:
    blocks = sorted({layer.split("/")[0] for layer in layers if "/" in layer}, key=_numbers)
    names: dict[str, Names] = {"classifier": ("classifier.1",)}
    for layer, index in (("stem_conv", 0), ("head_conv", len(blocks) + 1)):
        names |= _pair(layer, (f"features.{index}.0",), (f"features.{index}.1",))
    for index, block in enumerate(blocks, 1):
        parts = [f"{block}/{part}_conv" for part in ("expand", "depthwise")]
        present = [part for part in parts if part in layers]
        scope, last = f"features.{index}.conv", len(present)
        for i, layer in enumerate(present):
            names |= _pair(layer, (f"{scope}.{i}.0",), (f"{scope}.{i}.1",))
        names |= _pair(f"{block}/project_conv", (f"{scope}.{last}",), (f"{scope}.{last + 1}",))
    return names


def _plain(layers: Sequence[str], has_norms: bool) -> dict[str, Names]:
    """VGG and AlexNet: a sequence of convolutions, norms if any, activations and poolings."""
    convs = sorted((layer for layer in layers if layer.startswith("stage")), key=_numbers)
    names: dict[str, Names] = {}
    index = num_stages = 0
    for _, stage in itertools.groupby(convs, key=lambda layer: layer.split("/")[0]):
        for layer in stage:
            names |= _pair(layer, (f"features.{index}",), (f"features.{index + 1}",))
            index += 3 if has_norms else 2
        index += 1
        num_stages += 1
    if "hidden1" not in layers:
        return names | {"classifier": ("classifier",)}
    hidden = zip(("hidden1", "hidden2"), _HIDDEN[num_stages], strict=True)
    return names | {layer: (name,) for layer, name in hidden} | {"classifier": ("classifier.6",)}


def _squeezenet(layers: Sequence[str], has_norms: bool) -> dict[str, Names]:
    names: dict[str, Names] = {"stem_conv": ("features.0",), "classifier": ("classifier.1",)}
    for layer in layers:
        if match := re.fullmatch(r"fire(\d+)/(\w+)_conv", layer):
            names[layer] = (f"features.{_FIRES[int(match[1])]}.{match[2]}",)
    return names


def _pair(conv: str, conv_names: Names, norm_names: Names) -> dict[str, Names]:
    return {conv: conv_names, norm_of(conv): norm_names}


def _numbers(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path)]


_FAMILIES: tuple[tuple[str, Callable[[Sequence[str], bool], dict[str, Names]]], ...] = (
    (r"\w+/depthwise_conv", _mobilenet_v2),
    (r"fire\d+/squeeze_conv", _squeezenet),
    (r"stage\d+_block\d+/conv\d+", _resnet),
    (r"stage\d+/conv\d+", _plain),
)
