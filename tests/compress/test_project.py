"""Projection of a model: what is fitted, what is copied, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import GenerationSpec, QuantSpec, create_model, fake_quantize, generate_kernel
from mlg_jax.compress import ProjectionSpec, project_model
from mlg_jax.generation import from_layout
from mlg_jax.layers import layer_records

SPEC = GenerationSpec.from_bits(2, 8, 6, 6, 6)
OPTIONS = {"num_classes": 4, "width": 0.25}


def make(generation=None, **options):
    return create_model("resnet18", **OPTIONS, generation=generation, **options)


@pytest.fixture(scope="module")
def teacher():
    """A teacher with recognisable norms and running statistics."""
    variables = jax.jit(make().init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    keys = iter(jax.random.split(jax.random.key(1), 200))
    move = lambda v: v + 0.1 * jax.random.uniform(next(keys), v.shape)  # noqa: E731
    return jax.tree.map(move, variables)


def kernel_of(projection, model, name):
    record = next(r for r in layer_records(model) if r.name == name)
    node = projection.variables["params"]
    for part in record.path:
        node = node[part]
    spec = record.provider.spec
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
    for name in ("stem_conv", "stage2_block1/shortcut_conv", "stage4_block2/conv1"):
        assert projection.errors[name] == pytest.approx(
            relative(projection, model, teacher, name), rel=1e-4
        )
    assert len(projection.errors) == 20
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
    norm = got["params"]["stage3_block1"]["norm2"]
    assert jax.tree.all(
        jax.tree.map(np.array_equal, norm, given["params"]["stage3_block1"]["norm2"])
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


def test_high_rank_and_many_bits_reproduce_the_teacher(teacher):
    exact = GenerationSpec(8, 15, *(QuantSpec(16),) * 3)
    model = make({"stage1_*/conv?": exact})
    projection = project_model(
        model, teacher, key=jax.random.key(0), spec=ProjectionSpec(method="svd")
    )
    assert set(projection.errors) == {
        f"stage1_block{b}/conv{c}" for b in (1, 2) for c in (1, 2)
    }
    assert max(projection.errors.values()) < 0.05  # rank 15 of 16, rank 8 of 9
    unquantised = make({"stage1_*/conv?": GenerationSpec(8, 15)})
    reference = project_model(
        unquantised, teacher, key=jax.random.key(0), spec=ProjectionSpec(method="svd")
    )
    for name, error in projection.errors.items():
        assert error == pytest.approx(reference.errors[name], rel=1e-2)


def test_same_key_same_bits(teacher):
    model = make(SPEC)
    spec = ProjectionSpec(method="l2", num_steps=5)
    first, second = (
        project_model(model, teacher, key=jax.random.key(3), spec=spec) for _ in range(2)
    )
    same = jax.tree.map(np.array_equal, first.variables, second.variables)
    assert jax.tree.all(same)


@pytest.mark.bad_input
def test_teachers_that_do_not_fit(teacher):
    def project(model, variables, **kwargs):
        return project_model(model, variables, key=jax.random.key(0), **kwargs)

    wide = create_model("resnet18", num_classes=4, width=0.5, generation=SPEC)
    with pytest.raises(ValueError, match="`teacher_variables` must hold .* with shape .*; got"):
        project(wide, teacher)
    deep = create_model("resnet34", **OPTIONS, generation=SPEC)
    with pytest.raises(ValueError, match="`teacher_variables` must hold params .*; it is missing"):
        project(deep, teacher)
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
