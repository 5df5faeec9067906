"""Mean and standard deviation of the pixels of each data set, in [0, 1], one number a channel."""

import numpy as np

from mlg_jax.data._examples import Examples

# ImageNet's, which photographs at other resolutions share; torchvision's values.
_PHOTOGRAPHS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Over all pixels of the training images (not the mean of each image's standard deviation, which
# many CIFAR recipes copy: .2023 .1994 .2010). Rounded to four digits.
KNOWN_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "svhn_cropped": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "oxford_flowers102": _PHOTOGRAPHS,
    "stanford_dogs": _PHOTOGRAPHS,
    "cars196": _PHOTOGRAPHS,
    "tf_flowers": _PHOTOGRAPHS,
    "imagenette": _PHOTOGRAPHS,
    "imagenet2012": _PHOTOGRAPHS,
}

_NUM_SAMPLED = 4096  # images that the statistics of an unknown data set are computed from
_SEED = 0  # of which they are; a constant, so that a data set has one mean
_CHUNK = 256  # images read at once
_MIN_STD = 1 / 255  # one grey level, so that a constant channel is not divided by zero

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def channel_statistics(examples: Examples, indices: np.ndarray) -> Statistics:
    """Mean and standard deviation over all pixels of `indices`, or of 4,096 of them at random.

    The choice is the same in every run. It is random because any regular one may fall in with the
    order of the classes, and sorted so that files are read in their order. Sums are float64 over
    chunks, so memory does not grow with the data set.
    """
    if len(indices) > _NUM_SAMPLED:
        rng = np.random.default_rng(_SEED)
        indices = indices[np.sort(rng.choice(len(indices), _NUM_SAMPLED, replace=False))]
    num_pixels = 0
    total = total_squared = np.zeros(())
    for start in range(0, len(indices), _CHUNK):
        pixels = examples.read(indices[start : start + _CHUNK])["image"].astype(np.float64) / 255
        num_pixels += pixels[..., 0].size
        total = total + pixels.sum(axis=(0, 1, 2))
        total_squared = total_squared + np.square(pixels).sum(axis=(0, 1, 2))
    mean = total / num_pixels
    variance = total_squared / num_pixels - np.square(mean)
    std = np.sqrt(np.maximum(variance, _MIN_STD**2))
    return tuple(mean.tolist()), tuple(std.tolist())
