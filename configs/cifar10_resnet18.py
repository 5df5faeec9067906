"""ResNet-18 on CIFAR-10 in 350 KB: the published recipe, 2-44-3-6-3.

    python launch.py --config=configs/cifar10_resnet18.py --workdir=runs/cifar10_resnet18

Published accuracy: teacher 94.10 %, student 93.72 %. The teacher is trained for 200 epochs,
projected in 3,000 steps, and the student trained for 200 epochs. Intended for a GPU.
"""

import ml_collections


def get_config():
    """The whole experiment."""
    optimizer = {"name": "radam", "weight_decay": 5e-4}
    schedule = {"name": "exponential", "learning_rate": 2e-3, "factor_per_epoch": 0.98}
    loop = {"num_epochs": 200, "optimizer": optimizer, "schedule": schedule}
    config = {
        "seed": 0,
        "data": {
            "name": "cifar10",
            "num_validation": 5000,
            "batch_size": 128,
            "eval_batch_size": 512,
            "augment": {"crop_padding": 4, "horizontal_flip": True},
        },
        "model": {"name": "resnet18", "stem": "cifar", "dtype": "float32"},
        "generation": {
            "base_in": 2,
            "base_out": 44,
            "basis_bits": 3,
            "coeff_in_bits": 6,
            "coeff_out_bits": 3,
            "weight_bits": 8,
        },
        "teacher": {"train": loop, "checkpoint": None},
        "projection": {"method": "svd_l2", "num_steps": 3000, "learning_rate": 2e-2},
        "student": {
            "train": loop,
            "start": "projected",
            "loss": "distillation",
            "beta": 0.9,
            "temperature": 3.0,
            "penalty": 0.05,
        },
    }
    return ml_collections.ConfigDict(config).lock()
