"""A small network with every kind of stored tensor and random variables, and its packed file."""

import jax
import jax.numpy as jnp
import numpy as np

from mlg_jax import GenerationSpec, create_model, save_packed
from mlg_jax.engine import ImagePreprocessing

SIZE = 16
CLASS_NAMES = ("cat", "dog", "eel", "fox")
METRICS = {"test_accuracy": 0.9371, "test_loss": 0.25}
PREPROCESSING = ImagePreprocessing(
    image_size=(SIZE, SIZE), mean=(0.5, 0.25, 0.75), std=(0.25, 0.5, 0.125)
)
GENERATION = GenerationSpec.from_bits(2, 6, 3, 9, 4)
OPTIONS = {"width": 0.25, "generation": GENERATION, "weight_bits": 8, "activation_bits": 6}


def trained(name="tiny", *, size=SIZE, **options):
    """A model with random variables, none of which has its initial value."""
    model = create_model(name, num_classes=len(CLASS_NAMES), **(OPTIONS | options))
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    random = np.random.default_rng(0)

    def value(path, leaf):
        name, shape = path[-1].key, leaf.shape
        uniform = {"scale": (0.5, 1.5), "var": (0.5, 2.0), "maximum": (2.0, 4.0)}
        if name == "is_set":
            return np.ones(shape, bool)
        if name == "minimum":
            return np.full(shape, -2.0, np.float32)
        low, high = uniform.get(name, (-0.5, 0.5))
        return random.uniform(low, high, shape).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(value, shapes)


def saved(path, model, variables):
    """Writes the file with all optional entries."""
    return save_packed(
        path,
        model,
        variables,
        preprocessing=PREPROCESSING,
        class_names=CLASS_NAMES,
        metrics=METRICS,
    )


def images(num, *, size=SIZE):
    """Random normalised images."""
    return np.random.default_rng(3).standard_normal((num, size, size, 3)).astype(np.float32)


def pixels(num):
    """Random uint8 images."""
    return np.random.default_rng(4).integers(0, 256, (num, SIZE, SIZE, 3), np.uint8)
