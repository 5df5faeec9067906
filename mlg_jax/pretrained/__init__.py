"""Trained networks that come with the package: small enough to need no download.

| name | images | test accuracy | file |
|---|---|--:|--:|
| `cifar10_cnn` | CIFAR-10 | 89.1 % | 95 KB |
| `cifar10_cnn_small` | CIFAR-10 | 88.1 % | 57 KB |

They are accuracies on a copy of CIFAR-10 whose images were compressed again as JPEG of quality 75;
the dense teacher, of 7,702 KB, has 89.9 % there. `mlg inspect --pretrained NAME` prints a model
card.
"""

from mlg_jax.pretrained._load import PRETRAINED as PRETRAINED
from mlg_jax.pretrained._load import load_pretrained as load_pretrained
from mlg_jax.pretrained._load import pretrained_path as pretrained_path
