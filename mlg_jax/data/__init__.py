"""Data sets on the host, batches on the device.

```python
spec = DataSpec(name="cifar10", num_validation=5000, batch_size=128,
                augment=AugmentSpec(crop_padding=4, horizontal_flip=True))
dataset = load_dataset(spec, sharding=None)     # or a NamedSharding of a batch's first axis

dataset.num_train, dataset.num_validation, dataset.steps_per_epoch        # 45000, 5000, 351
dataset.num_classes, dataset.class_names, dataset.image_shape, dataset.count_classes()

dataset.train_batches(epoch, start_step=0)      # {"image": uint8 [b,h,w,c], "label": int32 [b]}
dataset.validation_batches()                    # the same and "mask": bool [b], False for filling
dataset.test_batches()                          # likewise; the only thing that reads test images

dataset.preprocessing.augment(key, images)      # uint8 -> uint8, pure: call it in the jitted step
dataset.preprocessing.normalize(images, dtype)  # uint8 -> float, (x / 255 - mean) / std
```

Batches are device arrays, generators of them; close one that is not run to its end. Which images
are in a training batch depends on `(spec.seed, epoch, step)` alone, and what is held out of train
on `spec.split_seed` alone, so a run resumed at any step sees what it would have seen. The last
training batch is dropped if it is not full; the last evaluation batch is filled up and masked.

Sets that fit live on the device as uint8 (`residency`), larger ones stream through Grain; the
batches are the same. Names: see `NAMES`. `cifar10` and `cifar100` are downloaded where they are
missing (`prepare_cifar`); the others of tensorflow-datasets are read where they were prepared as
array_record. Neither needs TensorFlow. `digits` and `synthetic` need no files. Your own data:

- `npz`: `train.npz` and `test.npz` in `data_dir` with `images`, uint8 [n, h, w, 1 or 3], and
  `labels`, [n], which are 0 to n - 1, each at least once in train, or indices into `class_names`.
- `image_folder`: `train/<class>/<image>` and `test/<class>/<image>` in `data_dir`, PNG, JPEG or
  WebP, which become the pixels that a viewer shows (`decode_image`). One warning counts what is
  left out.

What is wrong with them raises `DataError`, as far as it can be found without decoding every image
when the data set is opened, the test split included; the rest when an image is read.
"""

from mlg_jax.data._augment import Preprocessing as Preprocessing
from mlg_jax.data._augment import augment_images as augment_images
from mlg_jax.data._augment import normalize_images as normalize_images
from mlg_jax.data._augment import random_crop as random_crop
from mlg_jax.data._augment import random_cutout as random_cutout
from mlg_jax.data._augment import random_flip as random_flip
from mlg_jax.data._augment import random_resized_crop as random_resized_crop
from mlg_jax.data._batches import batch_indices as batch_indices
from mlg_jax.data._batches import evaluation_indices as evaluation_indices
from mlg_jax.data._batches import holdout_indices as holdout_indices
from mlg_jax.data._cifar import prepare_cifar as prepare_cifar
from mlg_jax.data._dataset import Dataset as Dataset
from mlg_jax.data._dataset import load_dataset as load_dataset
from mlg_jax.data._examples import DataError as DataError
from mlg_jax.data._images import FORMAT_NAMES as FORMAT_NAMES
from mlg_jax.data._images import IMAGE_FORMATS as IMAGE_FORMATS
from mlg_jax.data._images import decode_image as decode_image
from mlg_jax.data._spec import NAMES as NAMES
from mlg_jax.data._spec import AugmentSpec as AugmentSpec
from mlg_jax.data._spec import DataSpec as DataSpec
from mlg_jax.data._spec import SyntheticSpec as SyntheticSpec
