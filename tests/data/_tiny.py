"""Small data sets on disk, made by the tests themselves."""

import hashlib
import io
import tarfile

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

LAYOUTS = {
    "cifar10": {
        "folder": "cifar-10-batches-bin",
        "files": [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"],
        "names": {"batches.meta.txt": 10},
        "num_label_bytes": 1,
    },
    "cifar100": {
        "folder": "cifar-100-binary",
        "files": ["train.bin", "test.bin"],
        "names": {"coarse_label_names.txt": 20, "fine_label_names.txt": 100},
        "num_label_bytes": 2,
    },
}


def random_images(num, size=6, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, size, size, channels), np.uint8)


def cifar_records(num, num_label_bytes, seed):
    """uint8 [num, labels + 3072], in the published record format."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, (num, num_label_bytes), np.uint8)
    return np.concatenate([labels, rng.integers(0, 256, (num, 3072), np.uint8)], axis=1)


def cifar_files(name, num=12):
    """File name to content of a small archive in the format of `name`."""
    layout = LAYOUTS[name]
    files = {
        file: "".join(f"{file[:-4]}_{i}\n" for i in range(count)).encode() + b"\n"
        for file, count in layout["names"].items()
    }
    for seed, file in enumerate(layout["files"]):
        files[file] = cifar_records(num, layout["num_label_bytes"], seed).tobytes()
    return files


def write_archive(path, name, files):
    """Writes a tar.gz; returns its MD5."""
    with tarfile.open(path, "w:gz") as archive:
        for file, content in files.items():
            info = tarfile.TarInfo(f"{LAYOUTS[name]['folder']}/{file}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.2.0")
    splits: dict
    side: int | None = None
    num_classes = 3

    def _info(self):
        features = {
            # What other data sets carry along: Stanford Dogs, Cars-196, ImageNet.
            "file_name": tfds.features.Text(),
            "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature()}),
            "image": tfds.features.Image(shape=(self.side, self.side, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=self.num_classes),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(*value) for split, value in self.splits.items()}

    def _generate_examples(self, images, labels):
        box = tfds.features.BBox(ymin=0.1, xmin=0.1, ymax=0.9, xmax=0.9)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield (
                index,
                {
                    "file_name": f"{index}.png",
                    "objects": [{"bbox": box}],
                    "image": PIL.Image.fromarray(image),
                    "label": int(label),
                },
            )


def prepare(name, data_dir, splits, side=None):
    """Prepares `{split: (images, labels)}` as array_record."""
    attributes = {"splits": splits, "side": side, "name": name}
    builder_class = type("Tiny", (_Builder,), attributes, skip_registration=True)
    builder_class.name = name
    builder = builder_class(data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return builder


def write_npz(directory, num_train=40, num_test=10, **replaced):
    """Writes train.npz and test.npz; returns the training arrays."""
    labels = np.arange(num_train) % 4
    train = {"images": random_images(num_train), "labels": labels} | replaced
    np.savez(directory / "train.npz", **{k: v for k, v in train.items() if v is not None})
    test = {"images": random_images(num_test, seed=1), "labels": np.arange(num_test) % 4}
    np.savez(directory / "test.npz", **test)
    return train


def write_folder(directory, sizes=((6, 6),), num=3, classes=("cat", "dog")):
    """Writes PNG files; returns `{(split, class): [images]}`."""
    written = {}
    for number, split in enumerate(("train", "test")):
        for label, name in enumerate(classes):
            folder = directory / split / name
            folder.mkdir(parents=True)
            rng = np.random.default_rng((number, label))
            images = [
                rng.integers(0, 256, (*sizes[i % len(sizes)], 3), np.uint8) for i in range(num)
            ]
            for i, image in enumerate(images):
                PIL.Image.fromarray(image).save(folder / f"{i}.png")
            written[split, name] = images
    return written
