"""Names of our layers in PyTorch networks: those of torchvision and of the original MLG code."""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mlg_jax.kernels import LayerRecord

Names = tuple[str, ...]  # alternatives for one module, by preference; the first one is exported
# The hidden layers by the number of stages: 3 for AlexNet, 5 for VGG.
_HIDDEN = {3: ("classifier.1", "classifier.4"), 5: ("classifier.0", "classifier.3")}
# The index of each fire module in `features`, which also contains the poolings.
_FIRES = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}


class TorchNames(NamedTuple):
    """Names of PyTorch modules by the paths of our layers."""

    layers: dict[str, Names]  # of all convolutions and dense layers
    norms: dict[str, Names]  # of the norm that may follow a convolution, by the convolution's path


def torch_names(
    architecture: str, records: Sequence[LayerRecord], *, has_norms: bool
) -> TorchNames:
    """Names of the PyTorch modules of a network.

    Args:
        architecture: one of `mlg_jax.models.MODELS`, or the name of its class.
        records: of our network.
        has_norms: whether the PyTorch network has norms; the indices of a VGG depend on it.

    Raises:
        ValueError: the architecture has no counterpart in PyTorch.
    """
    name = architecture.lower()
    family = next((f for prefix, f in _FAMILIES.items() if name.startswith(prefix)), None)
    if family is None:
        raise ValueError(
            f"`architecture` must start with one of {list(_FAMILIES)}; got {architecture!r}."
        )
    return family([record.name for record in records if record.kernel is not None], has_norms)


def _resnet(layers: Sequence[str], has_norms: bool) -> TorchNames:
    names = TorchNames({"stem_conv": ("conv1",), "classifier": ("fc", "linear")}, {})
    names.norms["stem_conv"] = ("bn1",)
    for layer in layers:
        if match := re.fullmatch(r"stage(\d+)_block(\d+)/(\w+)", layer):
            block = f"layer{match[1]}.{int(match[2]) - 1}"
            if match[3] == "shortcut_conv":
                scopes = (f"{block}.downsample", f"{block}.shortcut")
                names.layers[layer] = tuple(f"{scope}.0" for scope in scopes)
                names.norms[layer] = tuple(f"{scope}.1" for scope in scopes)
            else:
                number = match[3].removeprefix("conv")
                names.layers[layer] = (f"{block}.conv{number}",)
                names.norms[layer] = (f"{block}.bn{number}",)
    return names


def _mobilenet_v2(layers: Sequence[str], has_norms: bool) -> TorchNames:
    blocks = sorted({layer.split("/")[0] for layer in layers if "/" in layer}, key=_numbers)
    pairs = {
        layer: (f"features.{index}.0", f"features.{index}.1")
        for layer, index in (("stem_conv", 0), ("head_conv", len(blocks) + 1))
    }
    for index, block in enumerate(blocks, 1):
        parts = [f"{block}/{part}_conv" for part in ("expand", "depthwise")]
        present = [part for part in parts if part in layers]
        scope, last = f"features.{index}.conv", len(present)
        pairs |= {c: (f"{scope}.{i}.0", f"{scope}.{i}.1") for i, c in enumerate(present)}
        pairs[f"{block}/project_conv"] = (f"{scope}.{last}", f"{scope}.{last + 1}")
    names = TorchNames({"classifier": ("classifier.1",)}, {})
    for layer, (conv, norm) in pairs.items():
        names.layers[layer], names.norms[layer] = (conv,), (norm,)
    return names


def _plain(layers: Sequence[str], has_norms: bool) -> TorchNames:
    """VGG and AlexNet: a sequence of convolutions, norms if any, activations and poolings."""
    convs = sorted((layer for layer in layers if layer.startswith("stage")), key=_numbers)
    names = TorchNames({}, {})
    index = num_stages = 0
    for _, stage in itertools.groupby(convs, key=lambda layer: layer.split("/")[0]):
        for layer in stage:
            names.layers[layer] = (f"features.{index}",)
            names.norms[layer] = (f"features.{index + 1}",)
            index += 3 if has_norms else 2
        index += 1
        num_stages += 1
    if "hidden1" not in layers:
        names.layers["classifier"] = ("classifier",)
        return names
    hidden = zip(("hidden1", "hidden2"), _HIDDEN[num_stages], strict=True)
    names.layers.update({layer: (name,) for layer, name in hidden})
    names.layers["classifier"] = ("classifier.6",)
    return names


def _squeezenet(layers: Sequence[str], has_norms: bool) -> TorchNames:
    names: dict[str, Names] = {"stem_conv": ("features.0",), "classifier": ("classifier.1",)}
    for layer in layers:
        if match := re.fullmatch(r"fire(\d+)/(\w+)_conv", layer):
            names[layer] = (f"features.{_FIRES[int(match[1])]}.{match[2]}",)
    return TorchNames(names, {})


def _numbers(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path)]


_FAMILIES: dict[str, Callable[[Sequence[str], bool], TorchNames]] = {
    "resnet": _resnet,
    "vgg": _plain,
    "alexnet": _plain,
    "mobilenet": _mobilenet_v2,
    "squeezenet": _squeezenet,
}
