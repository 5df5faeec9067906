"""A network of 100 KB for CIFAR-10, trained on two CPU cores within three hours.

    python launch.py --config=configs/cifar10_cpu.py --workdir=runs/cpu

The teacher is trained for 10 epochs by the recipe of https://arxiv.org/abs/2404.00498, projected by
what its layers compute, and the student, 2-42-3-6-3, is distilled for 6 epochs. On a GPU training
takes seconds and compiling minutes; more epochs then help: `--config.student.train.num_epochs=60`.
"""

import ml_collections

PEAK = 11.5 * 1000 / 1024 / (1 + 1 / (1 - 0.85))  # for a mean loss and batches of 1,000


def get_config():
    """The whole experiment."""
    config = {
        "seed": 0,
        "data": {
            "name": "cifar10",
            "num_validation": 0,
            "batch_size": 1000,
            "eval_batch_size": 1000,
            "augment": {
                "crop_padding": 2,
                "crop_border": "reflection",
                "horizontal_flip": "alternating",
            },
        },
        "model": {"name": "cifar_cnn", "dtype": "auto"},
        "generation": {
            "base_in": 2,
            "base_out": 42,
            "basis_bits": 3,
            "coeff_in_bits": 6,
            "coeff_out_bits": 3,
            "weight_bits": 8,
            "layers": {"whiten": 32},
        },
        "teacher": {
            "label_smoothing": 0.2,
            "train": {
                "num_epochs": 10,
                "optimizer": {
                    "name": "sgd",
                    "momentum": 0.85,
                    "weight_decay": 0.0153 / 11.5,
                    "lookahead": {},
                    "groups": [
                        {"pattern": "whiten/kernel", "learning_rate": 0.0},
                        {"pattern": "whiten/bias", "end_fraction": 0.3},
                        {"pattern": "*/norm?/bias", "learning_rate": 64.0, "weight_decay": 1 / 64},
                    ],
                },
                "schedule": {
                    "name": "triangular",
                    "learning_rate": PEAK,
                    "initial_fraction": 0.2,
                    "peak_fraction": 0.23,
                    "final_fraction": 0.07,
                },
                "checkpoint_every_steps": 25,
            },
        },
        "projection": {"metric": "data"},
        "student": {
            "beta": 1.0,
            "temperature": 1.0,
            "penalty": 0.0,
            "train": {
                "num_epochs": 6,
                "optimizer": {
                    "name": "adamw",
                    "groups": [{"pattern": "whiten/*", "learning_rate": 0.0}],
                },
                "schedule": {"name": "one_cycle", "learning_rate": 4e-3},
                "checkpoint_every_steps": 25,
            },
        },
        "report": {"augmented": True},
    }
    return ml_collections.ConfigDict(config).lock()
