"""Image folders: labels are the sorted directories, pixels those of the files."""

import numpy as np
import pytest

from mlg_jax.data import DataSpec
from mlg_jax.data._examples import read_all
from mlg_jax.data._sources import open_source
from tests.data._tiny import write_folder


def opened(directory, **options):
    return open_source(DataSpec(name="image_folder", data_dir=str(directory), **options))


def test_read(tmp_path):
    written = write_folder(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    source = opened(tmp_path)
    assert source.class_names == ("cat", "dog")
    for split, examples in (("train", source.train), ("test", source.open_test())):
        batch = read_all(examples, 1)
        expected = written[split, "cat"] + written[split, "dog"]
        np.testing.assert_array_equal(batch["image"], np.stack(expected))
        np.testing.assert_array_equal(batch["label"], [0, 0, 0, 1, 1, 1])
        np.testing.assert_array_equal(examples.read_labels(), batch["label"])


def test_images_of_several_sizes(tmp_path):
    write_folder(tmp_path, sizes=((6, 6), (9, 7)))
    assert read_all(opened(tmp_path, image_size=4).train, 1)["image"].shape == (6, 4, 4, 3)


@pytest.mark.bad_input
def test_images_of_several_sizes_need_a_size(tmp_path):
    write_folder(tmp_path, sizes=((6, 6), (9, 7)))
    message = r"`image_size` must be set .*; got \[9, 7, 3\] in .*1.png and \[6, 6, 3\] in .*0.png"
    with pytest.raises(ValueError, match=message):
        read_all(opened(tmp_path).train, 1)


@pytest.mark.bad_input
@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_directories(tmp_path, split):
    (tmp_path / ("test" if split == "train" else "train") / "cat").mkdir(parents=True)
    message = f"`data_dir` must have the directories train/<class> .*; there is no .*{split}"
    with pytest.raises(FileNotFoundError, match=message):
        opened(tmp_path)


@pytest.mark.bad_input
def test_without_classes_or_images(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    with pytest.raises(ValueError, match="train must have one directory a class; got none"):
        opened(tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(ValueError, match="train must have PNG or JPEG files .*; got none"):
        opened(tmp_path)


@pytest.mark.bad_input
def test_unknown_test_class(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test" / "emu").mkdir()
    with pytest.raises(ValueError, match=r"\['cat', 'dog'\]; got \['emu'\]"):
        opened(tmp_path).open_test()


@pytest.mark.bad_input
def test_a_broken_file_is_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "dog" / "1.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="The image .*1.png must be a readable PNG or JPEG"):
        read_all(opened(tmp_path).train, 2)
