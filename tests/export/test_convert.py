"""Imported networks give the original logits; exported ones are unchanged by a round trip."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mlg_jax import GenerationSpec, create_model
from mlg_jax.export import from_torch, to_torch, torch_num_classes
from mlg_jax.layers import layer_records
from mlg_jax.models import BottleneckBlock
from tests._models import tiny_resnet, variable_shapes
from tests._tolerances import CONTRACTION, X64, relative_error
from tests.export import _torch_networks as networks

NUM_CLASSES = 3
MOBILE = (8, 8, 8, 8, 8, 8, 16, 24)  # width 1/16, in multiples of 8
SQUEEZES = (4, 4, 8, 8, 12, 12, 16, 16)
PAPER = GenerationSpec.from_bits(2, 44, 3, 6, 3)


def of(network, **options):
    return functools.partial(network, **options)


def ours(name, **options):
    """A network of the package in a narrow version."""
    options = {"num_classes": NUM_CLASSES, "width": 1 / 16, "stem": "imagenet"} | options
    return functools.partial(create_model, name, **options)


# name: (function that makes our network, image size, the PyTorch network in NumPy)
CASES = {
    "basic": (ours("resnet10"), 33, of(networks.resnet, sizes=(1, 1, 1, 1))),
    "deep": (
        of(tiny_resnet, block=BottleneckBlock, stem="imagenet", channels=4, num_classes=3),
        32,
        of(networks.resnet, sizes=(1, 1), is_deep=True),
    ),
    "cifar": (
        ours("resnet10", stem="cifar"),
        16,
        of(networks.resnet, sizes=(1, 1, 1, 1), is_cifar=True),
    ),
    "vgg": (ours("vgg16"), 224, of(networks.vgg, has_norms=False, hidden=256)),
    "vgg_bn_folded": (ours("vgg16"), 224, of(networks.vgg, has_norms=True, hidden=256)),
    "vgg_bn_cifar": (ours("vgg16", stem="cifar"), 32, of(networks.vgg, has_norms=True)),
    "mobilenet_v2": (ours("mobilenet_v2"), 32, of(networks.mobilenet_v2, channels=MOBILE)),
    "alexnet": (
        ours("alexnet"),
        224,
        of(networks.alexnet, channels=(4, 12, 24, 16, 16), hidden=256),
    ),
    "squeezenet": (
        ours("squeezenet", width=1 / 4),
        33,
        of(networks.squeezenet, squeezes=SQUEEZES),
    ),
}


def architecture_of(model):
    """The name of a network in `create_model`; `resnet` for those that were built by hand."""
    return "resnet" if model.spec is None else model.spec.name


def imported(state, model, dtype=np.float32):
    template = jax.tree.map(
        lambda s: np.empty(s.shape, dtype if s.dtype == np.float32 else s.dtype),
        variable_shapes(model),
    )
    return from_torch(state, layer_records(model), template, architecture=architecture_of(model))


def flat(variables):
    return traverse_util.flatten_dict(variables, sep="/")


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_originals(x64, case):
    make, size, network = CASES[case]
    source = networks.Network()
    x = np.random.default_rng(1).normal(size=(2, 3, size, size))
    expected = network(source, x, NUM_CLASSES)
    assert np.all(np.ptp(expected, axis=0) > 1e-3)
    model = make(dtype=jnp.float64)
    variables = imported(source.state, model, np.float64)
    logits = jax.jit(model.apply)(variables, x.transpose(0, 2, 3, 1))
    assert relative_error(logits, expected) <= X64
    assert (
        torch_num_classes(source.state, layer_records(model), architecture=architecture_of(model))
        == NUM_CLASSES
    )


@pytest.fixture
def small():
    """A network and a state dict for it."""
    make, size, network = CASES["cifar"]
    source = networks.Network()
    network(source, np.zeros((1, 3, size, size)), NUM_CLASSES)
    state = {k: np.asarray(v, np.float32) for k, v in source.state.items()}
    return make(), state


@pytest.mark.parametrize("case", ["basic", "vgg_bn_cifar", "mobilenet_v2", "alexnet", "squeezenet"])
def test_exported_networks_run_and_come_back(case):
    make, size, network = CASES[case]
    source, target = networks.Network(), networks.Network(seed=1)
    x = np.random.default_rng(1).normal(size=(2, 3, size, size))
    expected = network(source, x, NUM_CLASSES)
    model = make()
    variables = imported(source.state, model)
    state = to_torch(layer_records(model), variables, architecture=architecture_of(model))
    assert {k for k in source.state if "num_batches" not in k} == state.keys()
    target.state = dict(state)
    assert relative_error(network(target, x, NUM_CLASSES), expected) < CONTRACTION
    again = flat(imported(state, model))
    for path, value in flat(variables).items():
        np.testing.assert_array_equal(again[path], value, err_msg=path)


def test_generated_kernels_are_exported_as_they_are_used():
    spec = GenerationSpec.from_bits(2, 3, 3, 6, 3)
    model = tiny_resnet(spec, channels=4, num_classes=NUM_CLASSES, weight_bits=8)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda s: rng.uniform(0.2, 0.6, s.shape).astype(s.dtype), variable_shapes(model)
    )
    state = to_torch(layer_records(model), variables, architecture=architecture_of(model))
    assert state["layer2.0.conv1.weight"].shape == (8, 4, 3, 3)
    source = networks.Network()
    for key, value in state.items():
        source.state[key.replace("fc", "linear").replace("downsample", "shortcut")] = value
    x = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    expected = networks.resnet(
        source, x.transpose(0, 3, 1, 2), NUM_CLASSES, sizes=(1, 1), is_cifar=True
    )
    logits = jax.jit(model.apply)(variables, x)
    assert relative_error(logits, expected) < CONTRACTION


def whole_weights(state):
    """Stores each basis in the corner of a full-size weight, like the original code."""
    whole = dict(state)
    for key in [key for key in state if key.endswith(".basis")]:
        basis = whole.pop(key)
        module = key.removesuffix(".basis")
        rows = state.get(f"{module}.coeff_out", basis).shape[0]
        columns = (
            state[f"{module}.coeff_in"].shape[1]
            if f"{module}.coeff_in" in state
            else basis.shape[1]
        )
        weight = np.full((rows, columns, *basis.shape[2:]), np.nan, np.float32)
        weight[: basis.shape[0], : basis.shape[1]] = basis
        whole[f"{module}.weight"] = weight
        whole[f"{module}.input_quantizer.obs.eps"] = np.array([1e-7])
    return whole


def test_checkpoints_of_the_original(reference):
    numbers = reference("resnet18_2_44_3_6_3")
    extra = ("x", "labels", "logits_eval", "logits_train", "loss_ce", "loss_ortho")
    state = {k: v for k, v in numbers.items() if k not in extra and "/" not in k}
    model = create_model("resnet18", num_classes=10, generation=PAPER, weight_bits=8)
    expected = flat(imported(state, model))
    whole = {f"module.{k}": v for k, v in whole_weights(state).items()}
    found = flat(imported(whole, model))
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
        assert value.dtype == np.float32


@pytest.mark.parametrize(
    "low, high, is_set",
    [
        (-1.5, 4.0, True),
        (np.inf, -np.inf, False),
        (-1.5, np.inf, False),
        (np.nan, 4.0, False),
        ([], 4.0, False),  # an empty array
    ],
)
def test_ranges_of_activations(small, low, high, is_set):
    _, state = small
    model = create_model("resnet10", num_classes=3, width=1 / 16, activation_bits=4)
    assert not any(v for k, v in flat(imported(state, model)).items() if k.endswith("is_set"))
    for end, value in (("min", low), ("max", high)):
        state[f"layer2.0.shortcut.0.input_quantizer.obs.{end}_val"] = np.array([value])
    variables = flat(imported(state, model))
    where = "batch_stats/stage2_block1/shortcut_conv/input_quant/range"
    assert variables[f"{where}/is_set"] == is_set
    ends = [variables[f"{where}/{name}"] for name in ("minimum", "maximum")]
    assert ends == ([low, high] if is_set else [0, 0])
    assert sum(v for k, v in variables.items() if k.endswith("is_set")) == is_set


@pytest.mark.bad_input
def test_one_error_lists_everything(small):
    model, state = small
    del state["layer2.0.bn1.running_var"]
    state["linear.bias"] = np.zeros(3)
    state["layer1.0.conv2.weight"] = state["layer1.0.conv2.weight"][..., :1]
    with pytest.raises(ValueError) as caught:
        imported(state, model)
    assert str(caught.value) == (
        "`state` must hold the model's arrays and no others; got missing: "
        "layer2.0.bn1.running_var; left over: linear.bias; of another shape: "
        "layer1.0.conv2.weight is (4, 4, 3, 1), not (4, 4, 3, 3)."
    )


@pytest.mark.bad_input
def test_another_architecture_is_a_short_message(small):
    _, state = small
    with pytest.raises(
        ValueError, match=r"missing: classifier.6.weight, .*, \d+ more; left over: bn1"
    ):
        imported(state, CASES["vgg"][0]())
    generated = tiny_resnet(GenerationSpec(2, 3), channels=4, num_classes=3)
    with pytest.raises(ValueError, match="missing: layer1.0.conv1.coeff_in, .*; left over: layer3"):
        imported(state, generated)


@pytest.mark.bad_input
def test_messages(small):
    model, state = small
    with pytest.raises(ValueError, match="`architecture` must start with one of .*; got 'tiny'"):
        from_torch(state, layer_records(model), {}, architecture="tiny")
    del state["linear.weight"]
    with pytest.raises(ValueError, match="`state` must hold fc.weight; it is missing"):
        torch_num_classes(state, layer_records(model), architecture="resnet10")
    quantized = create_model("resnet10", num_classes=3, width=1 / 16, activation_bits=4)
    variables = variable_shapes(quantized)
    with pytest.raises(ValueError, match="network without activation bits; got batch_stats/"):
        to_torch(layer_records(quantized), variables, architecture="resnet10")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16", "vgg16_bn", "mobilenet_v2"])
def test_torchvision(name):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    network = getattr(models, name)(weights=None, num_classes=7).eval()
    with torch.no_grad():
        for module in network.modules():  # no array keeps its initial zeros or ones
            if isinstance(module, torch.nn.BatchNorm2d):
                for array in (module.weight, module.running_var):
                    array.uniform_(0.5, 1.5)
                for array in (module.bias, module.running_mean):
                    array.normal_(0, 0.1)
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    ours = name.removesuffix("_bn")
    model = create_model(ours, num_classes=7, stem="imagenet")
    variables = imported({k: v.numpy() for k, v in network.state_dict().items()}, model)
    # Up to 50 layers of float32 sums in different orders.
    assert relative_error(jax.jit(model.apply)(variables, x), expected) < 10 * CONTRACTION
    state = to_torch(layer_records(model), variables, architecture=architecture_of(model))
    again = getattr(models, ours)(weights=None, num_classes=7).eval()
    again.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    with torch.no_grad():
        exported = again(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    assert relative_error(exported, expected) < 10 * CONTRACTION
