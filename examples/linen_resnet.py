"""A plain Flax Linen model: generated, projected, trained, compressed, packed and served.

    python examples/linen_resnet.py

takes about a minute on two CPU cores.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
from _digits import SHAPE, accuracy, digits, train
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
    """Runs every step; returns accuracies and sizes by the name of the network."""
    (images, labels), test = digits()
    teacher = ResNet()
    variables = jax.jit(teacher.init)(jax.random.key(0), images[:1])
    variables = train(teacher, variables, images, labels, num_epochs=num_epochs)
    results = {"trained": row(teacher, variables, test)}

    # The same model with generated kernels: one line.
    small = mlg_jax.generated(teacher, mlg_jax.GenerationSpec.from_bits(2, 16, 4, 6, 4))
    projection = ProjectionSpec(num_steps=200)
    projected = project_model(
        small, variables, key=jax.random.key(1), spec=projection, input_shape=SHAPE
    ).variables
    projected = estimate_statistics(small, projected, images)
    results["projected"] = row(small, projected, test)
    tuned = train(small, projected, images, labels, num_epochs=2, learning_rate=1e-3)
    results["generated, two epochs"] = row(small, tuned, test)
    save(folder / "generated.mlg", small, tuned, test)

    # Every layer its own spec, such that the whole fits into `target_kb`.
    choices = AllocationSpec(base_in=(0, 2), base_out=(1 / 4, 1 / 2), bits=(4, 8), num_measured=2)
    fitted = compress(
        teacher,
        variables,
        images[:256],
        target_kb=target_kb,
        key=jax.random.key(2),
        allocation=choices,
    )
    results["compressed"] = row(fitted.model, fitted.variables, test)
    save(folder / "compressed.mlg", fitted.model, fitted.variables, test)
    for name in ("generated", "compressed"):
        command = [sys.executable, __file__, "--check", str(folder / f"{name}.mlg")]
        subprocess.run(command, check=True)
    return results


def row(model, variables, test):
    """Test accuracy, and KB as stored."""
    size = mlg_jax.size_report(model, variables, input_shape=SHAPE)
    return {"accuracy": accuracy(model, variables, *test), "kb": size.kb}


def save(path, model, variables, test):
    """A packed file, and beside it the logits that it has to give."""
    mlg_jax.save_packed(path, model, variables, input_shape=SHAPE)
    np.save(path.with_suffix(".npy"), jax.jit(model.apply)(variables, test[0][:16]))


def check(path):
    """In a new process: the file and the plain model give the same logits, bit for bit."""
    predictor = mlg_jax.load_packed(path, model=ResNet(), batch_sizes=(16,))
    logits = predictor(digits()[1][0][:16])
    np.testing.assert_array_equal(logits, np.load(path.with_suffix(".npy")))
    print(f"{path.name}: {path.stat().st_size:,} bytes, the same logits in a new process")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", type=pathlib.Path, help="a file that another process wrote")
    path = parser.parse_args().check
    if path:
        check(path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for name, values in main(pathlib.Path(folder)).items():
                print(f"{name:22} {values['accuracy']:6.1%}  {values['kb']:7.1f} KB")
