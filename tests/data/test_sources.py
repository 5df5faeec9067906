"""Embedded, generated and npz sources."""

import collections
import io
import zipfile

import numpy as np
import pytest
import sklearn.datasets

from mlg_jax.data import NAMES, DataError, DataSpec, SyntheticSpec
from mlg_jax.data._examples import read_all
from mlg_jax.data._sources import SOURCES, open_source
from mlg_jax.data._test_split import stratified_split
from tests.data._tiny import random_images, write_npz


def read(examples):
    batch = read_all(examples, 2)
    return batch["image"], batch["label"]


def test_every_name_has_a_source():
    assert set(SOURCES) == set(NAMES)


def test_stratified_split():
    labels = np.random.default_rng(0).integers(0, 3, 100)
    kept, given = stratified_split(labels, 0.2, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, given])), np.arange(100))
    for label in range(3):
        assert (labels[given] == label).sum() == round(0.2 * (labels == label).sum())
    np.testing.assert_array_equal(given, stratified_split(labels, 0.2, 0)[1])
    assert set(given) != set(stratified_split(labels, 0.2, 1)[1])


def test_digits_are_those_of_scikit_learn_times_15():
    source = open_source(DataSpec(name="digits"))
    train, test = read(source.train), read(source.test)
    assert source.train.image_shape == (8, 8, 1) and len(source.class_names) == 10
    assert (len(train[0]), len(test[0])) == (1438, 359)
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    expected = collections.Counter(
        (row.astype(np.uint8).tobytes(), int(label))
        for row, label in zip(pixels, labels, strict=True)
    )
    images = np.concatenate([train[0], test[0]])
    assert (images % 15 == 0).all()
    found = zip(images // 15, np.concatenate([train[1], test[1]]), strict=True)
    assert collections.Counter((i.tobytes(), int(label)) for i, label in found) == expected
    assert np.bincount(test[1]).min() >= 34  # a fifth of each class of 174 to 183


def test_digits_can_be_enlarged():
    assert open_source(DataSpec(name="digits", image_size=16)).train.image_shape == (16, 16, 1)


def test_synthetic_is_deterministic_balanced_and_learnable():
    synthetic = SyntheticSpec(num_classes=4, num_train=200, num_test=80, noise=40.0)
    spec = DataSpec(name="synthetic", synthetic=synthetic, image_size=8)
    source = open_source(spec)
    images, labels = read(source.train)
    np.testing.assert_array_equal(images, read(open_source(spec).train)[0])
    np.testing.assert_array_equal(np.bincount(labels), [50] * 4)
    assert images.shape == (200, 8, 8, 3) and images.std() > 20
    # Classification by the nearest class mean is nearly perfect on the test images.
    means = np.stack([images[labels == label].mean(axis=0).ravel() for label in range(4)])
    test_images, test_labels = read(source.test)
    distances = np.square(test_images.reshape(80, 1, -1) - means).sum(axis=-1)
    assert (distances.argmin(axis=1) == test_labels).mean() > 0.95
    assert not np.array_equal(test_images[:4], images[:4])


def test_synthetic_seeds_differ():
    def images(seed):
        synthetic = SyntheticSpec(num_train=10, num_test=1, channels=1, seed=seed)
        return read(open_source(DataSpec(name="synthetic", synthetic=synthetic)).train)[0]

    assert images(0).shape == (10, 32, 32, 1)
    assert not np.array_equal(images(0), images(1))


def test_npz(tmp_path):
    train = write_npz(tmp_path)
    source = open_source(DataSpec(name="npz", data_dir=str(tmp_path)))
    images, labels = read(source.train)
    np.testing.assert_array_equal(images, train["images"])
    np.testing.assert_array_equal(labels, train["labels"])
    assert source.class_names == ("0", "1", "2", "3")
    np.testing.assert_array_equal(read(source.test)[0], random_images(10, seed=1))


def test_npz_class_names(tmp_path):
    write_npz(tmp_path, class_names=np.array(["a", "b", "c", "d", "e"]))
    source = open_source(DataSpec(name="npz", data_dir=str(tmp_path), image_size=4))
    assert source.class_names == tuple("abcde")
    assert source.train.image_shape == (4, 4, 3)


@pytest.mark.parametrize("dtype", ["U1", "S1"])
def test_npz_class_names_may_be_bytes(tmp_path, dtype):
    names = np.array(list("abcd"), dtype)
    write_npz(tmp_path, class_names=names)
    assert open_source(DataSpec(name="npz", data_dir=str(tmp_path))).class_names == tuple("abcd")


def test_npz_names_without_images_are_a_warning(tmp_path, caplog):
    write_npz(tmp_path, class_names=np.array(list("abcdef")))
    open_source(DataSpec(name="npz", data_dir=str(tmp_path)))
    (record,) = caplog.records
    expected = "train.npz: 2 of the 6 `class_names` have no image; the first is 'e'."
    assert record.levelname == "WARNING" and record.getMessage().endswith(expected)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("replaced", "error", "message"),
    [
        ({"images": random_images(40) / 255}, TypeError, r"train.npz must be uint8.*got float64"),
        ({"images": np.full((40, 6, 6, 3), np.nan)}, TypeError, "must be uint8.*got float64"),
        ({"images": random_images(0), "labels": np.zeros(0, int)}, ValueError, "not be empty"),
        ({"labels": np.arange(40) / 2}, TypeError, "must be integers"),
        (
            {"labels": np.arange(40) - 1},
            DataError,
            r"train.npz must be 0 to n - 1, each at least once, unless `class_names` lists the "
            r"classes; got 40 different labels from -1 to 38\. To renumber them: np\.unique",
        ),
        ({"labels": np.arange(40) % 4 + 1}, DataError, "got 4 different labels from 1 to 4."),
        ({"labels": np.arange(40) % 2 * 7}, DataError, "got 2 different labels from 0 to 7."),
        ({"labels": np.arange(40) // 39 << 40}, DataError, f"from 0 to {2**40}."),
        ({"labels": np.arange(40) // 39 << 63}, DataError, f"from {-(2**63)} to 0."),
        ({"labels": np.full(40, 2**64 - 1, np.uint64)}, DataError, f"from {2**64 - 1} to "),
        ({"labels": np.arange(40) % 2 == 0}, TypeError, "must be integers .*got bool"),
        (
            {"labels": np.arange(40) // 39 << 40, "class_names": np.array(["a", "b"])},
            DataError,
            rf"in \[0, 1\]; got {2**40} at index 39",
        ),
        ({"class_names": np.array("abc")}, DataError, r"must have the shape \[n\]; got \[\]"),
        ({"class_names": np.array(["a", "b"])}, ValueError, r"in \[0, 1\]; got 2 at index 2"),
        ({"labels": None}, ValueError, r"the arrays \['images', 'labels'\]; got \['images'\]"),
        (
            {"images": np.array([{}] * 40, object)},
            ValueError,
            "train.npz must be an npz file without objects; ",
        ),
    ],
)
def test_npz_is_checked(tmp_path, replaced, error, message):
    write_npz(tmp_path, **replaced)
    with pytest.raises(error, match=message):
        open_source(DataSpec(name="npz", data_dir=str(tmp_path)))


@pytest.mark.bad_input
def test_npz_test_labels_must_be_those_of_train(tmp_path):
    write_npz(tmp_path, labels=np.arange(40) % 2)
    with pytest.raises(DataError, match=r"test.npz must be in \[0, 1\]; got 2 at index 2"):
        open_source(DataSpec(name="npz", data_dir=str(tmp_path)))


@pytest.mark.bad_input
@pytest.mark.parametrize(("size", "channels"), [(6, 1), (7, 3)])
def test_npz_test_images_must_have_the_shape_of_train(tmp_path, size, channels):
    write_npz(tmp_path)
    images = random_images(4, size=size, channels=channels)
    np.savez(tmp_path / "test.npz", images=images, labels=np.arange(4))
    message = rf"of the training images, \[6, 6, 3\]; got \[{size}, {size}, {channels}\]\."
    with pytest.raises(DataError, match=message):
        open_source(DataSpec(name="npz", data_dir=str(tmp_path)))


@pytest.mark.bad_input
def test_npz_class_names_must_be_those_of_train(tmp_path):
    write_npz(tmp_path, class_names=np.array(list("abcd")))
    labels = np.arange(4)
    np.savez(tmp_path / "test.npz", images=random_images(4), labels=labels, class_names=labels)
    with pytest.raises(DataError, match=r"test.npz must be those of .* order; got \('0', '1', "):
        open_source(DataSpec(name="npz", data_dir=str(tmp_path)))


@pytest.mark.bad_input
def test_npz_without_enough_memory_or_with_damaged_deflate(tmp_path):
    write_npz(tmp_path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**18,)}
    )
    with zipfile.ZipFile(tmp_path / "train.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
    with pytest.raises(DataError, match="train.npz must be an npz file without objects; "):
        open_source(DataSpec(name="npz", data_dir=str(tmp_path)))
    np.savez_compressed(tmp_path / "train.npz", images=random_images(40), labels=np.arange(40) % 4)
    content = bytearray((tmp_path / "train.npz").read_bytes())
    content[100:120] = bytes(20)
    (tmp_path / "train.npz").write_bytes(content)
    with pytest.raises(DataError, match="train.npz must be an npz file without objects; "):
        open_source(DataSpec(name="npz", data_dir=str(tmp_path)))


@pytest.mark.bad_input
@pytest.mark.parametrize("split", ["train", "test"])
def test_npz_missing(tmp_path, split):
    write_npz(tmp_path)
    (tmp_path / f"{split}.npz").unlink()
    message = f"`data_dir` must have the files train.npz and test.npz; there is no .*{split}.npz"
    with pytest.raises(FileNotFoundError, match=message):
        open_source(DataSpec(name="npz", data_dir=str(tmp_path)))


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", ["truncated", "empty", "npy"])
def test_npz_of_another_format(tmp_path, kind):
    write_npz(tmp_path)
    path = tmp_path / "train.npz"
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, random_images(3))
    else:
        path.write_bytes(path.read_bytes()[: 200 if kind == "truncated" else 0])
    with pytest.raises(ValueError, match="must be an npz file without objects"):
        open_source(DataSpec(name="npz", data_dir=str(tmp_path)))
