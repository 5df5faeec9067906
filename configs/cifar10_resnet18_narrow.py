"""ResNet-18 at a quarter of its width on 10,000 CIFAR-10 images, for CPUs.

    python launch.py --config=configs/cifar10_resnet18_narrow.py --workdir=runs/narrow

Measured: teacher 66.31 %, student 65.18 %, in 13 to 16 minutes on 2 CPU cores.
"""

from configs import cifar10_resnet18


def get_config():
    """The published experiment with a smaller network, less data and fewer epochs."""
    config = cifar10_resnet18.get_config()
    with config.unlocked():
        config.data.train_limit = 10_000
        config.data.test_limit = 10_000
        config.model.width = 0.25
        config.generation.base_out = 16
        config.projection.num_steps = 1000
        loop = {
            "num_epochs": 8,
            "eval_every_epochs": 2,
            "optimizer": {"name": "adamw", "weight_decay": 5e-4},
            "schedule": {"name": "one_cycle", "learning_rate": 5e-3},
        }
        config.teacher.train = loop
        config.student.train = loop
        config.student.penalty = 0.01
    return config
