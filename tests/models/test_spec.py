"""Model specs recreate their model, also from JSON, and reject everything else."""

import json

import jax.numpy as jnp
import pytest

from mlg_jax import GenerationSpec, QuantSpec, create_model
from mlg_jax.models import ModelSpec
from mlg_jax.remat import RematSpec

GENERATION = GenerationSpec(
    2, 6, QuantSpec(3), QuantSpec(6, "qnn", 0.5), QuantSpec(1, "dorefa"), init="variance"
)
OPTIONS = [
    {},
    {"generation": GENERATION, "weight_bits": 8, "activation_bits": 4},
    {"generation": {"stage4_*": None, "*": GENERATION}, "implementation": "generate"},
    {"generation": GENERATION, "implementation": {"stem*": "generate", "*": "auto"}},
    {"stem": "imagenet", "width": 0.5, "dtype": jnp.bfloat16, "remat": "bitmap"},
    {"remat": RematSpec("bitmap", 0.5, capacities=(("stage1_block1/unit1", 0.25),))},
]


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_model_from_its_spec_and_from_json(name, options):
    if name == "mobilenet_v2" and isinstance(options.get("generation"), dict):
        options = options | {"generation": {"stage4_*": None}}
    model = create_model(name, num_classes=7, **options)
    assert model.spec.create() == model
    written = json.dumps(model.spec.to_json(), sort_keys=True)
    spec = ModelSpec.from_json(json.loads(written))
    assert spec == model.spec and hash(spec) == hash(model.spec)
    assert spec.create() == model
    assert json.dumps(spec.to_json(), sort_keys=True) == written


def test_json_of_older_files():
    spec = create_model(
        "resnet18", num_classes=7, generation=GENERATION, implementation="generate"
    ).spec
    tree = json.loads(json.dumps(spec.to_json()))
    tree["execution"] = tree.pop("implementation")
    del tree["remat"]["on_overflow"]
    assert ModelSpec.from_json(tree) == spec


def test_order_of_patterns_survives():
    generation = {"stage1*": GENERATION, "*": None}
    specs = [
        create_model("resnet18", num_classes=2, generation=dict(items)).spec
        for items in (generation.items(), reversed(generation.items()))
    ]
    assert specs[0] != specs[1]
    for spec in specs:
        assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def changed(path, value):
    """The JSON of a spec with one entry replaced, or removed if `value` is None."""
    tree = create_model("resnet18", num_classes=7, generation=GENERATION).spec.to_json()
    node = tree
    for name in path[:-1]:
        node = node[name]
    if value is KeyError:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return tree


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "path, value, message",
    [
        (["name"], "resnet19", "`name` must be one of"),
        (["name"], ["resnet18"], "`name` must be one of"),
        (["num_classes"], 0, "`num_classes` must be an integer >= 1; got 0"),
        (["num_classes"], "7", "`num_classes` must be an integer"),
        (["num_classes"], KeyError, r"`model` must have the keys \['activation_bits', "),
        (["colour"], 1, "`model` must have the keys .* got .*'colour'"),
        (["width"], float("nan"), "`width` must be a number"),
        (["weight_bits"], 17, r"`bits` must be an integer in \[1, 16\]; got 17"),
        (["implementation"], "quick", "`implementation` must be one of"),
        (["implementation"], [["*", "quick"]], r"`implementation\['\*'\]` must be one of"),
        (
            ["generation"],
            [["*", None]] * 1025,
            "at most 1024 patterns .*; got 1025, the longest of 1",
        ),
        (["implementation"], [["*" * 257, "auto"]], "patterns of 256 characters; got 1, .* of 257"),
        (["implementation"], [[]], "`model.implementation` must be a list of pairs"),
        (["dtype"], "int8", "`dtype` must be a floating-point dtype"),
        (["remat"], None, "`model.remat` must have the keys"),
        (["remat", "mesh"], {}, "`model.remat.mesh` must be None"),
        (["remat", "capacities"], [["a"]], "`model.remat.capacities` must be a list of pairs"),
        (["generation"], "2-44", "`model.generation` must have the keys"),
        (["generation"], [["*", 3]], "`model.generation` must have the keys"),
        (["generation"], [[3, None]], "`generation pattern` must be str; got 3"),
        (["generation", "base_in"], -1, "`base_in` must be an integer >= 0"),
        (["generation", "basis", "scheme"], "best", "`scheme` must be one of"),
        (["generation", "basis"], {"bits": 3}, "`model.generation.basis` must have the keys"),
    ],
)
def test_json_that_is_no_spec(path, value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ModelSpec.from_json(changed(path, value))


@pytest.mark.bad_input
def test_a_mesh_cannot_be_written():
    import jax

    policy = RematSpec("bitmap", mesh=jax.make_mesh((1,), ("data",)))
    spec = create_model("resnet18", num_classes=7, remat=policy).spec
    with pytest.raises(ValueError, match="`remat` must have no mesh"):
        spec.to_json()
