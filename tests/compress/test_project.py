"""Projection of a model: fitted kernels, copied variables and rejected arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import GenerationSpec, create_model, fake_quantize, generate_kernel
from mlg_jax._convolution import from_layout
from mlg_jax.compress import ProjectionSpec, project_model
from tests._models import record_named, tiny_networks, tiny_resnet, variable_shapes

SPEC = GenerationSpec.from_bits(2, 8, 6, 6, 6)
make = tiny_resnet


@pytest.fixture(scope="module")
def teacher():
    """A teacher with recognisable norms and running statistics."""
    variables = jax.jit(make().init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    keys = iter(jax.random.split(jax.random.key(1), 200))
    move = lambda v: v + 0.1 * jax.random.uniform(next(keys), v.shape)  # noqa: E731
    return jax.tree.map(move, variables)


def variables_of(model):
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), variable_shapes(model))


def kernel_of(projection, model, name):
    record = record_named(model, name)
    node = projection.variables["params"]
    for part in record.path:
        node = node[part]
    spec = record.kernel.spec
    q = {n: fake_quantize(node[n], getattr(spec, n)) for n in node}
    return generate_kernel(q["basis"], q.get("coeff_in"), q.get("coeff_out"))


def relative(projection, model, teacher, name):
    *path, last = name.split("/")
    node = teacher["params"]
    for part in (*path, last):
        node = node[part]
    target = from_layout(node["kernel"])
    error = kernel_of(projection, model, name) - target
    return float(jnp.sum(error**2) / jnp.sum(target**2))


@pytest.mark.parametrize("method", ["svd", "l2", "svd_l2"])
def test_reported_errors_are_those_of_the_returned_variables(teacher, method):
    model = make(SPEC, weight_bits=8)
    projection = project_model(
        model,
        teacher,
        key=jax.random.key(2),
        spec=ProjectionSpec(method=method, num_steps=20),
        report_every=10,
    )
    for name in ("stem_conv", "stage2_block1/shortcut_conv", "stage2_block1/conv2"):
        assert projection.errors[name] == pytest.approx(
            relative(projection, model, teacher, name), rel=1e-4
        )
    assert len(projection.errors) == 6
    assert [step for step, _ in projection.history] == ([] if method == "svd" else [0, 10])


def test_everything_that_is_not_generated_is_copied(teacher):
    model = make(SPEC, weight_bits=8)
    projection = project_model(
        model, teacher, key=jax.random.key(2), spec=ProjectionSpec(method="svd")
    )
    got, given = projection.variables, teacher
    same = jax.tree.map(np.array_equal, got["batch_stats"], given["batch_stats"])
    assert jax.tree.all(same)
    assert np.array_equal(
        got["params"]["classifier"]["kernel"], given["params"]["classifier"]["kernel"]
    )
    norm = got["params"]["stage2_block1"]["norm2"]
    assert jax.tree.all(
        jax.tree.map(np.array_equal, norm, given["params"]["stage2_block1"]["norm2"])
    )
    logits = model.apply(got, jnp.ones((1, 32, 32, 3)))
    assert np.all(np.isfinite(logits))


def test_least_squares_improves_on_both_starts(teacher):
    model = make(SPEC)
    mean = {}
    for method in ("svd", "l2", "svd_l2"):
        projection = project_model(
            model,
            teacher,
            key=jax.random.key(2),
            spec=ProjectionSpec(method=method, num_steps=300),
            report_every=300,
        )
        mean[method] = np.mean(list(projection.errors.values()))
    assert mean["svd_l2"] < 0.98 * mean["svd"]
    assert mean["l2"] < 0.9


def test_high_rank_and_many_bits_cost_what_the_rank_costs(teacher):
    errors = {}
    for bits in (16, None):
        model = make(GenerationSpec.from_bits(8, 15, bits, bits, bits))
        projection = project_model(
            model, teacher, key=jax.random.key(0), spec=ProjectionSpec(method="svd")
        )
        errors[bits] = projection.errors["stage1_block1/conv1"]  # ranks 15 of 16 and 8 of 9
    assert errors[None] < 0.05
    assert errors[16] == pytest.approx(errors[None], rel=1e-2)


def test_same_key_same_bits(teacher):
    model = make(SPEC)
    spec = ProjectionSpec(method="l2", num_steps=5)
    first, second = (
        project_model(model, teacher, key=jax.random.key(3), spec=spec) for _ in range(2)
    )
    same = jax.tree.map(np.array_equal, first.variables, second.variables)
    assert jax.tree.all(same)


@pytest.mark.parametrize("bits", [None, 16])
def test_large_kernels_are_held_as_well_as_small_ones(teacher, bits):
    # 16 bits for V only: its entries are bounded, so the unquantised factors take up the scale.
    model = make(GenerationSpec.from_bits(8, 15, None, None, bits))
    errors = []
    for scale in (1.0, 100.0):
        scaled = {**teacher, "params": jax.tree.map(lambda v, s=scale: v * s, teacher["params"])}
        spec = ProjectionSpec(method="svd")
        projection = project_model(model, scaled, key=jax.random.key(0), spec=spec)
        errors.append(projection.errors["stage1_block1/conv1"])
    assert errors[1] == pytest.approx(errors[0], rel=1e-2)


def test_float64_stays_float64(x64):
    options = {"num_classes": 4, "width": 0.0625, "dtype": "float64"}
    with tiny_networks():
        plain, small = (create_model("tiny", **options, generation=g) for g in (None, SPEC))
    spec = ProjectionSpec(method="svd")
    projection = project_model(small, variables_of(plain), key=jax.random.key(0), spec=spec)
    assert {v.dtype for v in jax.tree.leaves(projection.variables)} == {jnp.dtype("float64")}


@pytest.mark.bad_input
def test_teachers_that_do_not_fit(teacher):
    def project(model, variables, **kwargs):
        return project_model(model, variables, key=jax.random.key(0), **kwargs)

    with pytest.raises(ValueError, match=r"`teacher_variables` must hold .* with shape .*; got"):
        project(make(SPEC, channels=32), teacher)
    with pytest.raises(ValueError, match="must hold .* stage1_block2/.*; it is missing"):
        project(make(SPEC, stage_sizes=(2, 1)), teacher)
    with pytest.raises(ValueError, match="hold batch_stats .*norm.*/mean; it is missing"):
        project(make(SPEC), {"params": teacher["params"]})
    deeper = variables_of(make(stage_sizes=(2, 1)))
    with pytest.raises(ValueError, match="of the student's architecture; got .* stage1_block2/.*"):
        project(make(SPEC), deeper)
    with pytest.raises(TypeError, match="`spec` must be ProjectionSpec; got 'svd'"):
        project(make(SPEC), teacher, spec="svd")
    with pytest.raises(ValueError, match="`report_every` must be an integer >= 1; got 0"):
        project(make(SPEC), teacher, report_every=0)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"method": "pca"}, ValueError, r"`method` must be one of \['l2', 'svd', 'svd_l2'\]; got"),
        ({"num_steps": 0}, ValueError, "`num_steps` must be an integer >= 1; got 0"),
        ({"learning_rate": 0.0}, ValueError, "`learning_rate` must be a number in .*; got 0.0"),
        ({"schedule": "step"}, ValueError, r"`schedule` must be one of \['constant', 'cosine'\]"),
    ],
)
def test_bad_specs(options, error, message):
    with pytest.raises(error, match=message):
        ProjectionSpec(**options)
