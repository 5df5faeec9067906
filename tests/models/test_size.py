"""Size reports: the published counts, exactly, and errors for what cannot be counted."""

import json

import jax
import jax.numpy as jnp
import pytest

from mlg_jax import GenerationSpec, create_model, size_report
from tests._models import variable_shapes

PAPER = GenerationSpec.from_bits(2, 44, 3, 6, 3)


def report(name, num_classes=10, generation=PAPER, weight_bits=8, **options):
    model = create_model(
        name, num_classes=num_classes, generation=generation, weight_bits=weight_bits, **options
    )
    return size_report(model, variable_shapes(model))


@pytest.mark.parametrize(
    "name, num_params, num_dense_params, kb",
    [
        ("resnet18", 555_520, 11_173_952, 350.0),
        ("resnet34", 1_065_600, 21_282_112, 682.703125),
        ("resnet50", 2_411_008, 23_520_832, 1205.3125),
    ],
)
def test_published_counts(name, num_params, num_dense_params, kb):
    size = report(name)
    assert (size.num_params, size.num_dense_params, size.kb) == (num_params, num_dense_params, kb)
    assert size.dense_kb == num_dense_params * 4 / 1024


@pytest.mark.parametrize(
    "options, kb, ratio",
    [
        ({}, 350.0, 0.0080),
        ({"num_classes": 100}, 395.0, 0.0090),
        ({"generation": GenerationSpec.from_bits(2, 44, 8, 8, 8)}, 570.625, 0.0131),
        ({"generation": GenerationSpec(2, 44), "weight_bits": None}, 2170.0, 0.0497),
    ],
)
def test_published_ratios_of_resnet18(options, kb, ratio):
    size = report("resnet18", **options)
    assert size.kb == kb and round(size.ratio, 4) == ratio


def test_dense_model_stores_itself():
    size = report("resnet18", generation=None, weight_bits=None)
    assert size.ratio == 1.0 and size.num_params == 11_173_952


def test_dense_count_equals_the_dense_models_parameters():
    dense = create_model("resnet18", num_classes=10)
    leaves = jax.tree.leaves(variable_shapes(dense)["params"])
    assert sum(leaf.size for leaf in leaves) == report("resnet18").num_dense_params


def test_rows_add_up_and_tables_show_them():
    size = report("resnet18", width=0.25)
    assert sum(row.num_bits for row in size.layers) == size.total.num_bits
    table = size.to_markdown().splitlines()
    assert len(table) == len(size.layers) + 3 and table[-1].startswith("| total |")
    data = json.loads(json.dumps(size.to_dict()))
    assert data["total"]["kb"] == size.kb
    assert data["layers"][0]["name"] == "classifier"
    assert len({row["name"] for row in data["layers"]}) == 41


def test_reference_network_stores_as_many_entries(reference):
    numbers = reference("resnet18_2_44_3_6_3")
    skip = ("after/", "grad/", "x", "labels", "log", "loss")
    stored = [a for n, a in numbers.items() if not n.startswith(skip) and "running" not in n]
    assert sum(a.size for a in stored) == report("resnet18").num_params


@pytest.mark.bad_input
def test_variables_of_another_model():
    model = create_model("resnet18", num_classes=10, generation=PAPER)
    other = create_model("resnet18", num_classes=12, generation=PAPER)
    with pytest.raises(ValueError, match=r"classifier/kernel with shape \(512, 10\); got \(512, 1"):
        size_report(model, variable_shapes(other))
    with pytest.raises(ValueError, match="parameters of layer stage1_block1/conv1; 'basis' is mi"):
        size_report(model, variable_shapes(create_model("resnet18", num_classes=10)))
    with pytest.raises(ValueError, match=r"`variables` must hold 'params'; got \['x'\]"):
        size_report(model, {"x": 1})
    extra = variable_shapes(model)
    extra["params"]["more"] = {"kernel": jnp.zeros(3)}
    with pytest.raises(ValueError, match="the 97 arrays that the layers declare; got 98"):
        size_report(model, extra)
