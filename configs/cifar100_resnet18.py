"""ResNet-18 on CIFAR-100 in 395 KB: the published recipe, 2-44-3-6-3.

    python launch.py --config=configs/cifar100_resnet18.py --workdir=runs/cifar100_resnet18

Published accuracy: teacher 73.53 %, student 71.47 %. Intended for a GPU.
"""

from configs import cifar10_resnet18


def get_config():
    """The CIFAR-10 experiment, on CIFAR-100."""
    config = cifar10_resnet18.get_config()
    config.data.name = "cifar100"
    return config
