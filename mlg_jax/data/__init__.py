"""Data sets on the host, batches on the device.

```python
spec = DataSpec(name="cifar10", num_validation=5000, batch_size=128,
                augment=AugmentSpec(crop_padding=4, horizontal_flip=True))
dataset = load_dataset(spec, sharding=None)     # or a NamedSharding for the batch axis

dataset.num_train, dataset.num_validation, dataset.steps_per_epoch        # 45000, 5000, 351
dataset.num_classes, dataset.class_names, dataset.image_shape, dataset.count_classes()

dataset.train_batches(epoch, start_step=0)      # {"image": uint8 [b,h,w,c], "label": int32 [b]}
dataset.validation_batches()                    # the same, and "mask": bool [b], False for padding
dataset.test_batches()                          # likewise; nothing else reads the test images

dataset.preprocessing.augment(key, images)      # uint8 -> uint8, pure: for use in the jitted step
dataset.preprocessing.normalize(images, dtype)  # uint8 -> float, (x / 255 - mean) / std
```

The three methods return generators of batches that are already on the device; close a generator
that you do not exhaust. The images in a training batch depend on `(spec.seed, epoch, step)` only,
and the validation split on `spec.split_seed` only, so a run that resumes at any step sees the same
batches as one that never stopped. An incomplete last training batch is dropped; an incomplete last
evaluation batch is padded and masked.

Data sets that fit in device memory are kept there as uint8 (`residency`); larger ones are streamed
with Grain. Both give the same batches. `NAMES` lists the data sets. `cifar10` and `cifar100` are
downloaded if they are missing (`prepare_cifar`); other tensorflow-datasets must already be prepared
as array_record. None of them needs TensorFlow to be read. `digits` and `synthetic` need no files.
Your own data:

- `npz`: `data_dir` holds `train.npz` and `test.npz`, each with `images`, uint8 [n, h, w, 1 or 3],
  and `labels`, integers [n]. Labels are indices into the array `class_names` if there is one;
  otherwise they must be 0 to `num_classes - 1`, each at least once in `train.npz`.
- `image_folder`: `data_dir` holds `train/<class>/<image>` and `test/<class>/<image>`, or only
  `<class>/<image>`, of which a fixed random fifth of each class is the test split. PNG, JPEG or
  WebP, decoded to the pixels that an image viewer shows (`decode_image`). One warning counts the
  files that are ignored.

Invalid data raise `DataError`: when the data set is opened, test split included, if the fault can
be found without decoding every image, and otherwise when the image is read.
"""

from mlg_jax._image_files import FORMAT_NAMES as FORMAT_NAMES
from mlg_jax._image_files import IMAGE_FORMATS as IMAGE_FORMATS
from mlg_jax._image_files import DataError as DataError
from mlg_jax._image_files import decode_image as decode_image
from mlg_jax.data._augment import Preprocessing as Preprocessing
from mlg_jax.data._augment import alternating_flip as alternating_flip
from mlg_jax.data._augment import augment_images as augment_images
from mlg_jax.data._augment import evaluation_views as evaluation_views
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
from mlg_jax.data._folder import images_below as images_below
from mlg_jax.data._spec import NAMES as NAMES
from mlg_jax.data._spec import AugmentSpec as AugmentSpec
from mlg_jax.data._spec import DataSpec as DataSpec
from mlg_jax.data._spec import SyntheticSpec as SyntheticSpec
from mlg_jax.data._statistics import KNOWN_STATISTICS as KNOWN_STATISTICS
