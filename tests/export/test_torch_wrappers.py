"""Names in the state dicts of wrapped networks become those of the network alone."""

import itertools

import pytest

from mlg_jax.export._torch_wrappers import own_names

OWN = ["conv1.weight", "layer1.0.bn1.bias", "layer1.0.downsample.0.weight", "fc.weight"]
WRAPPERS = ("module", "_orig_mod", "model", "net", "ema", "my.classifier_of_cats")


def unwrapped(names):
    return list(own_names(names).values())


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_wrappers_come_off_in_any_order(depth):
    for scopes in itertools.product(WRAPPERS, repeat=depth):
        assert unwrapped([".".join((*scopes, name)) for name in OWN]) == OWN, scopes


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_the_counter_of_averaged_weights_is_left_out(prefix):
    names = [f"{prefix}n_averaged", *(f"{prefix}module.{name}" for name in OWN)]
    assert unwrapped(names) == OWN
    assert list(own_names(names)) == names[1:]


def test_compiled_and_checkpointed_layers():
    inner = ["layer1._orig_mod.0.module.bn1.bias", "fc._checkpoint_wrapped_module.weight"]
    assert unwrapped(["model.conv1.weight", *inner]) == [
        *("conv1.weight", "layer1.0.bn1.bias", "fc.weight")
    ]


def test_what_stands_beside_a_network_stays():
    names = [*(f"model.{name}" for name in OWN), "loss.weight", "ema_model.fc.weight"]
    assert unwrapped(names) == [*OWN, "loss.weight", "ema_model.fc.weight"]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["fc.weight"],  # a part of a network, whose scope belongs to the network
        ["layer1.0.conv1.weight", "layer1.0.bn1.bias"],
        ["features.0.weight", "features.3.weight"],
        ["fc.weight", "module.fc.weight"],  # would become equal
        ["submodule.fc.weight", "weight"],
        ["weight"],
    ],
)
def test_other_names_stay(names):
    assert unwrapped(names) == names


@pytest.mark.bad_input
def test_names_of_any_length_take_no_time():
    long = ".".join(["a"] * 10**5)
    assert unwrapped([f"{long}.x", f"{long}.y"]) != []
