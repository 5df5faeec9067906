"""ResNet-18 on CIFAR-10 in 350 KB, 2-44-3-6-3, trained for 30 epochs per stage.

    python launch.py --config=configs/cifar10_resnet18_fast.py --workdir=runs/fast

A modern recipe: Nesterov SGD for the teacher, AdamW for the student, one-cycle schedules, cutout,
label smoothing for the teacher; bfloat16 on a GPU.
"""

from configs import cifar10_resnet18


def get_config():
    """The published experiment with another training recipe."""
    config = cifar10_resnet18.get_config()
    with config.unlocked():
        config.data.batch_size = 256
        config.data.augment.cutout_size = 8
        config.model.dtype = "auto"
        config.teacher.label_smoothing = 0.1
        config.teacher.train = {
            "num_epochs": 30,
            "optimizer": {"name": "sgd", "weight_decay": 5e-4, "momentum": 0.9},
            "schedule": {"name": "one_cycle", "learning_rate": 0.2},
        }
        config.student.train = {
            "num_epochs": 30,
            "optimizer": {"name": "adamw", "weight_decay": 5e-4, "clip_norm": 5.0},
            "schedule": {"name": "one_cycle", "learning_rate": 4e-3},
        }
        config.student.penalty = 0.01
    return config
