"""State dicts are imported into the given model; otherwise the error names the one that fits."""

import time

import jax
import numpy as np
import pytest
from flax import traverse_util

from mlg_jax.engine import import_torch
from mlg_jax.models import ModelSpec, create_model
from tests.export import _torch_networks as networks

OPTIONS = {"name": "--model ", "stem": "--stem ", "width": "--width "}


@pytest.fixture(scope="module")
def state():
    """The state dict of a ResNet-10 with stem `imagenet`, width 1/16 and 7 classes."""
    net = networks.Network()
    networks.resnet(net, np.zeros((1, 3, 33, 33)), 7, sizes=(1, 1, 1, 1))
    return {name: np.asarray(value, np.float32) for name, value in net.state.items()}


def spec(name="resnet10", stem="imagenet", width=1 / 16):
    return ModelSpec(name=name, num_classes=1, stem=stem, width=width)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.", "model.net."])
def test_the_model_has_the_classes_of_the_file(state, prefix):
    given = {prefix + name: value for name, value in state.items()}
    if "module" in prefix:
        given["n_averaged"] = np.array(3)
    model, variables = import_torch(given, spec(), options=OPTIONS)
    assert model == create_model("resnet10", num_classes=7, stem="imagenet", width=1 / 16)
    flat = traverse_util.flatten_dict(variables, sep="/")
    np.testing.assert_array_equal(flat["params/classifier/kernel"], state["fc.weight"].T)
    key = "layer2.0.downsample.1.running_var"
    found = flat["batch_stats/stage2_block1/shortcut_norm/var"]
    np.testing.assert_array_equal(found, state[key])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "asked, advice",
    [
        (spec("resnet18"), "use --model resnet10."),
        (spec("resnet152"), "use --model resnet10."),
        (spec("vgg16"), "use --model resnet10."),
        (spec("alexnet", "cifar"), "use --model resnet10 --stem imagenet."),
        (spec(stem="cifar"), "use --stem imagenet."),
    ],
)
def test_the_right_model_is_named(state, asked, advice):
    start = time.perf_counter()
    with pytest.raises(ValueError) as caught:
        import_torch(state, asked, options=OPTIONS)
    assert str(caught.value) == (
        "These tensors are those of resnet10 with stem imagenet and width 0.0625; " + advice
    )
    assert time.perf_counter() - start < 30


@pytest.mark.bad_input
def test_a_width_of_one_is_tried(state):
    net = networks.Network()
    networks.squeezenet(
        net, np.zeros((1, 3, 33, 33)), 2, squeezes=(16, 16, 32, 32, 48, 48, 64, 64), channels=64
    )
    with pytest.raises(ValueError, match=r"squeezenet .*; use --model squeezenet --width 1.0\.$"):
        import_torch(net.state, spec("resnet18"), options=OPTIONS)


@pytest.mark.bad_input
def test_no_model_fits(state):
    beside = state | {"loss.weight": np.zeros(3)}
    with pytest.raises(ValueError, match=r"and no others; got left over: loss.weight\.$"):
        import_torch(beside, spec(), options=OPTIONS)
    without = {k: v for k, v in state.items() if not k.startswith("fc.")}
    with pytest.raises(ValueError, match=r"`state` must hold fc.weight; it is missing\.$"):
        import_torch(without, spec(), options=OPTIONS)
    empty = state | {"fc.weight": np.zeros((0, 32), np.float32)}
    with pytest.raises(ValueError, match=r"hold fc.weight; its shape is \(0, 32\)\.$"):
        import_torch(empty, spec(), options=OPTIONS)
