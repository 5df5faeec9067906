"""Projection by outputs: it must beat the closed form where it counts, and resume exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import GenerationSpec, create_model
from mlg_jax.compress import ProjectionSpec, project_model

SPEC = ProjectionSpec(metric="data", num_steps=100)


class Store:
    def __init__(self, stored=None):
        self.stored, self.saved = stored, []

    def load(self):
        return self.stored

    def save(self, leaves, history):
        self.saved.append(([np.asarray(leaf) for leaf in leaves], history))


def networks():
    options = {"num_classes": 4, "width": 0.125}
    teacher = create_model("cifar_cnn", **options)
    generation = GenerationSpec.from_bits(2, 4, 4, 4, 4)
    student = create_model("cifar_cnn", **options, generation=generation, weight_bits=8)
    images = jax.random.normal(jax.random.key(0), (64, 32, 32, 3))
    variables = jax.jit(teacher.init)(jax.random.key(1), images)
    return teacher, student, variables, images


def test_outputs_are_nearer_to_the_teachers_and_a_stored_projection_resumes():
    teacher, student, variables, images = networks()
    wanted = teacher.apply(variables, images, train=True, mutable=["batch_stats"])[0]

    @jax.jit
    def logits_of(found):
        return student.apply(found, images, train=True, mutable=["batch_stats"])[0]

    def distance(found):
        return float(jnp.sum(jnp.square(logits_of(found) - wanted)))

    def projected(spec, store=None):
        return project_model(
            student, variables, key=jax.random.key(0), images=images, spec=spec, store=store
        )

    store = Store()
    matched = projected(SPEC, store)
    closed = projected(ProjectionSpec(metric="data", method="svd"))
    assert distance(matched.variables) < 0.7 * distance(closed.variables)
    assert len(matched.history) == len(matched.errors) == len(store.saved) > 5
    resumed = projected(SPEC, Store(store.saved[2]))
    assert resumed.history == matched.history
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, matched.variables)


@pytest.mark.bad_input
def test_a_start_without_its_factors():
    _, student, variables, images = networks()
    with pytest.raises(ValueError, match="`start` must have factors of shapes"):
        project_model(student, variables, key=jax.random.key(0), images=images, spec=SPEC, start={})
