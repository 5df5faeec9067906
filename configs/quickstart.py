"""A small ResNet on handwritten digits (bundled with scikit-learn), in minutes on a CPU.

    python launch.py --config=configs/quickstart.py --workdir=runs/quickstart

Measured: teacher 98.61 %, student 99.44 %, in 5 minutes on 2 CPU cores, installation included.
"""

import ml_collections


def get_config():
    """The whole experiment."""
    optimizer = {"name": "adamw", "weight_decay": 1e-3}
    schedule = {"name": "one_cycle", "learning_rate": 6e-3}
    loop = {
        "num_epochs": 25,
        "optimizer": optimizer,
        "schedule": schedule,
        "eval_every_epochs": 5,
        "log_every_steps": 20,
    }
    config = {
        "seed": 0,
        "data": {
            "name": "digits",
            "num_validation": 150,
            "batch_size": 64,
            "eval_batch_size": 256,
            "augment": {"crop_padding": 1},
        },
        "model": {"name": "resnet10", "stem": "cifar", "width": 0.5, "dtype": "float32"},
        "generation": {
            "base_in": 2,
            "base_out": 24,
            "basis_bits": 3,
            "coeff_in_bits": 6,
            "coeff_out_bits": 3,
            "weight_bits": 8,
        },
        "teacher": {"train": loop, "checkpoint": None, "label_smoothing": 0.1},
        "projection": {"method": "svd_l2", "num_steps": 500, "learning_rate": 2e-2},
        "student": {
            "train": loop,
            "start": "projected",
            "loss": "distillation",
            "beta": 0.9,
            "temperature": 3.0,
            "penalty": 0.01,
        },
    }
    return ml_collections.ConfigDict(config).lock()
