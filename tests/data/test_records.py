"""Data sets prepared by tensorflow-datasets: finding, reading, and errors if they are missing."""

import io
import json
import re

import numpy as np
import PIL.Image
import pytest

from mlg_jax.data import DataError, DataSpec, load_dataset
from mlg_jax.data._examples import read_all
from mlg_jax.data._records import RecordExamples, _version_directory
from mlg_jax.data._sources import open_source
from tests.data._tiny import prepare, random_images


def split(num, seed, size=6):
    return random_images(num, size=size, seed=seed), np.arange(num) % 3


def sorted_rows(images, labels):
    rows = np.concatenate([images.reshape(len(images), -1), np.asarray(labels)[:, None]], axis=1)
    return sorted(map(bytes, rows.astype(np.uint8)))


def opened(name, directory, **options):
    return open_source(DataSpec(name=name, data_dir=str(directory), **options))


def test_read_the_highest_version(tmp_path):
    splits = {"train": split(300, 0), "test": split(9, 1)}
    prepare("mnist", tmp_path, splits, side=6)
    root = tmp_path / "mnist"
    (root / "1.10.0").mkdir()  # a higher version, but incomplete
    (root / "incomplete.X_9.0.0").mkdir()
    source = opened("mnist", tmp_path)
    assert source.class_names == ("0", "1", "2")
    for name, examples in (("train", source.train), ("test", source.test)):
        batch = read_all(examples, 2)
        assert sorted_rows(batch["image"], batch["label"]) == sorted_rows(*splits[name])
        np.testing.assert_array_equal(examples.read_labels(), batch["label"])
    backwards = source.train.read(np.array([5, 2]))
    np.testing.assert_array_equal(
        backwards["image"][1], source.train.read(np.array([2]))["image"][0]
    )


def test_versions_are_numbers_and_complete(tmp_path):
    for version in ("1.9.0", "1.10.0", "2.0.0", "x.3.0.0"):
        (tmp_path / version).mkdir()
        if version != "2.0.0":  # 2.0.0 stays incomplete
            (tmp_path / version / "dataset_info.json").touch()
    assert _version_directory(str(tmp_path)) == str(tmp_path / "1.10.0")
    assert _version_directory(str(tmp_path / "2.0.0")) is None
    assert _version_directory(str(tmp_path / "none")) is None


@pytest.mark.parametrize(
    ("name", "names", "num_train", "num_test"),
    [
        ("oxford_flowers102", {"train": 6, "validation": 3, "test": 12}, 9, 12),
        ("tf_flowers", {"train": 60}, 48, 12),
        ("imagenet2012", {"train": 9, "validation": 6, "test": 3}, 9, 6),
        ("stanford_dogs", {"train": 9, "test": 3}, 9, 3),
    ],
)
def test_which_split_is_which(tmp_path, name, names, num_train, num_test):
    prepare(name, tmp_path, {key: split(num, num) for key, num in names.items()})
    source = opened(name, tmp_path, image_size=4)
    test = source.test
    assert (len(source.train), len(test)) == (num_train, num_test)
    assert source.train.image_shape == test.image_shape == (4, 4, 3)
    pixels = [set(map(bytes, read_all(part, 1)["image"])) for part in (source.train, test)]
    assert not pixels[0] & pixels[1]


def test_variants(tmp_path):
    splits = {"train": split(9, 0), "validation": split(6, 1)}
    prepare("imagenette", tmp_path, splits)
    (tmp_path / "imagenette" / "1.2.0").rename(tmp_path / "aside")
    (tmp_path / "imagenette" / "160px-v2").mkdir()
    (tmp_path / "aside").rename(tmp_path / "imagenette" / "160px-v2" / "1.2.0")
    source = opened("imagenette", tmp_path, image_size=4, variant="160px-v2")
    assert len(source.train) == 9
    with pytest.raises(FileNotFoundError, match="nothing was found in .*full-size-v2"):
        opened("imagenette", tmp_path, image_size=4)


def test_images_are_resized_to_the_size_asked_for(tmp_path):
    prepare("mnist", tmp_path, {"train": split(9, 0), "test": split(3, 1)}, side=6)
    assert opened("mnist", tmp_path, image_size=6).train.image_shape == (6, 6, 3)
    assert opened("mnist", tmp_path, image_size=9).train.read(np.arange(2))["image"].shape == (
        (2, 9, 9, 3)
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("spec", "command"),
    [
        ({"name": "mnist"}, "tfds build mnist --file_format=array_record --data_dir={}"),
        (
            {"name": "imagenette", "variant": "320px-v2"},
            "tfds build imagenette/320px-v2 --file_format=array_record --data_dir={}",
        ),
        (
            {"name": "cifar10", "download": False},
            "python -c \"from mlg_jax.data import prepare_cifar; prepare_cifar('cifar10', '{}')\"",
        ),
    ],
)
def test_a_missing_set_names_the_directory_and_the_command(tmp_path, spec, command):
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset(DataSpec(data_dir=str(tmp_path), **spec))
    message = str(caught.value)
    assert f"The data set {spec['name']!r} must be prepared as array_record" in message
    assert f"nothing was found in {tmp_path}/{spec['name']}" in message
    assert message.endswith(command.format(tmp_path))


class _Encoded:
    """Records of which only the first image is valid."""

    def __init__(self, *contents):
        self._contents = contents

    def __len__(self):
        return len(self._contents)

    def read(self, indices):
        return [{"image": self._contents[index], "label": 0} for index in indices]


def _png(side):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_png(1), r"The image 1 of here must have the shape \[6, 6, 3\]; got \[1, 1, 3\]\."),
        (_png(6)[:40], "The image 1 of here must be a readable PNG, JPEG or WebP; "),
    ],
)
def test_images_that_are_not_what_was_declared(content, message):
    records = _Encoded(_png(6), content)
    examples = RecordExamples(
        records, image_shape=(6, 6, 3), size=None, num_classes=1, where="here"
    )
    assert examples.read(np.array([0]))["image"].shape == (1, 6, 6, 3)
    with pytest.raises(DataError, match=message):
        read_all(examples, 1)


@pytest.mark.bad_input
def test_the_wrong_format_names_the_command(tmp_path):
    prepare("mnist", tmp_path, {"train": split(3, 0), "test": split(3, 1)}, side=6)
    info = tmp_path / "mnist" / "1.2.0" / "dataset_info.json"
    content = json.loads(info.read_text())
    info.write_text(json.dumps(content | {"fileFormat": "tfrecord"}))
    message = r"the format 'tfrecord' was found in .*/1.2.0\. Prepare it .*tfds build mnist"
    with pytest.raises(FileNotFoundError, match=message):
        opened("mnist", tmp_path)


@pytest.mark.bad_input
def test_a_missing_split_is_noticed_at_once(tmp_path):
    prepare("mnist", tmp_path, {"train": split(3, 0)}, side=6)
    with pytest.raises(FileNotFoundError, match=re.escape("the splits ['train'] were found")):
        opened("mnist", tmp_path)


@pytest.mark.bad_input
def test_images_of_several_sizes_need_a_size(tmp_path):
    prepare("mnist", tmp_path, {"train": split(3, 0), "test": split(3, 1)})
    message = "`image_size` must be an integer for 'mnist', whose images differ in size; got None"
    with pytest.raises(ValueError, match=message):
        opened("mnist", tmp_path)
