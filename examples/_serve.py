"""Shared by the examples: packed files that are checked in new processes, and a command line."""

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
    """Writes a packed file and, next to it, images with the logits expected for them."""
    mlg_jax.save_packed(path, model, variables, input_shape=SHAPE)
    logits = jax.jit(model.apply)(variables, images)
    np.savez(path.with_suffix(".npz"), images=images, logits=logits)


def check(path, model):
    """Checks that the file, loaded into a fresh model, gives bit-identical logits."""
    expected = np.load(path.with_suffix(".npz"))
    predictor = mlg_jax.load_packed(path, model=model, batch_sizes=(len(expected["images"]),))
    np.testing.assert_array_equal(predictor(expected["images"]), expected["logits"])
    print(f"{path.name}: {path.stat().st_size:,} bytes, the same logits in a new process")


def run(main, make_model):
    """Runs `main(folder) -> {network: (accuracy, KB)}`, then checks its files in new processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", type=pathlib.Path, help="packed file to check in this process")
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
