"""A plain Flax Linen model: generated, projected, trained, compressed, packed and served.

    python examples/linen_resnet.py

takes about a minute on two CPU cores.
"""

import _serve
import jax
from _digits import SHAPE, digits, score, train
from plain_resnet import ResNet

import mlg_jax
from mlg_jax.compress import (
    AllocationSpec,
    ProjectionSpec,
    compress,
    estimate_statistics,
    project_model,
)


def main(folder, *, num_epochs=4, target_kb=16.0):
    """Runs every step; returns accuracy and KB by network name."""
    (images, labels), test = digits()
    teacher = ResNet()
    variables = jax.jit(teacher.init)(jax.random.key(0), images[:1])
    variables = train(teacher, variables, images, labels, num_epochs=num_epochs)
    results = {"trained": score(teacher, variables, *test)}

    # The same model with generated kernels: one line.
    small = mlg_jax.generated(teacher, mlg_jax.GenerationSpec.from_bits(2, 16, 4, 6, 4))
    projection = ProjectionSpec(num_steps=200)
    projected = project_model(
        small, variables, key=jax.random.key(1), spec=projection, input_shape=SHAPE
    ).variables
    projected = estimate_statistics(small, projected, images)
    results["projected"] = score(small, projected, *test)
    tuned = train(small, projected, images, labels, num_epochs=2, learning_rate=1e-3)
    results["generated, two epochs"] = score(small, tuned, *test)
    _serve.save(folder / "generated.mlg", small, tuned, test[0][:16])

    # A separate spec for each layer, such that the whole network fits into `target_kb`.
    choices = AllocationSpec(base_in=(0, 2), base_out=(1 / 4, 1 / 2), bits=(4, 8), num_measured=2)
    fitted = compress(
        teacher,
        variables,
        images[:256],
        target_kb=target_kb,
        key=jax.random.key(2),
        allocation=choices,
    )
    results["compressed"] = score(fitted.model, fitted.variables, *test)
    _serve.save(folder / "compressed.mlg", fitted.model, fitted.variables, test[0][:16])
    return results


if __name__ == "__main__":
    _serve.run(main, lambda name: ResNet())
