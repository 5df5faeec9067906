"""Per-channel mean and standard deviation of each data set's pixels, scaled to [0, 1]."""

import numpy as np

from mlg_jax.data._examples import Examples

# ImageNet's statistics (torchvision's values), customary for photographs at any resolution.
_PHOTOGRAPHS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Over all pixels of the training images, to four digits. Many CIFAR recipes use the mean of the
# per-image standard deviations instead (0.2023, 0.1994, 0.2010).
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

_NUM_SAMPLED = 4096  # images sampled for the statistics of other data sets
_SEED = 0  # of the sample; a constant, so that a data set always has the same statistics
_CHUNK = 256  # images read at once
_MIN_STD = 1 / 255  # one grey level; avoids a division by zero for a constant channel

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def channel_statistics(examples: Examples, indices: np.ndarray) -> Statistics:
    """Per-channel mean and standard deviation over the images at `indices`, at most 4,096 of them.

    A larger set is sampled: with a fixed seed, so that every run gets the same values; at random,
    because a regular stride may coincide with the order of the classes; and sorted, so that files
    are read sequentially. Sums are accumulated in float64 over chunks, so memory does not grow with
    the data set.
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
