"""What the examples share: packed files that a new process reads, and their command line."""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
from _digits import SHAPE

import mlg_jax


def save(path, model, variables, images):
    """A packed file, and beside it the images and the logits that it has to give for them."""
    mlg_jax.save_packed(path, model, variables, input_shape=SHAPE)
    logits = jax.jit(model.apply)(variables, images)
    np.savez(path.with_suffix(".npz"), images=images, logits=logits)


def check(path, model):
    """The file and a fresh model give the same logits, bit for bit."""
    expected = np.load(path.with_suffix(".npz"))
    predictor = mlg_jax.load_packed(path, model=model, batch_sizes=(len(expected["images"]),))
    np.testing.assert_array_equal(predictor(expected["images"]), expected["logits"])
    print(f"{path.name}: {path.stat().st_size:,} bytes, the same logits in a new process")


def run(main, make_model):
    """Runs `main(folder) -> {network: (accuracy, KB)}`, then checks its files in new processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", type=pathlib.Path, help="a file that another process wrote")
    path = parser.parse_args().check
    if path:
        check(path, make_model(path.stem))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = main(pathlib.Path(folder))
        for path in sorted(pathlib.Path(folder).glob("*.mlg")):
            subprocess.run([sys.executable, sys.argv[0], "--check", str(path)], check=True)
    for name, (accuracy, kb) in results.items():
        print(f"{name:22} {accuracy:6.1%}  {kb:7.1f} KB")
