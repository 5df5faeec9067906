"""Image folders: labels follow the sorted directories, pixels equal those of the files."""

import shutil

import numpy as np
import PIL.Image
import pytest

from mlg_jax.data import IMAGE_FORMATS, DataError, DataSpec
from mlg_jax.data._examples import read_all
from mlg_jax.data._sources import open_source
from tests.data._tiny import random_images, write_folder


def opened(directory, **options):
    return open_source(DataSpec(name="image_folder", data_dir=str(directory), **options))


def test_read(tmp_path):
    written = write_folder(tmp_path)
    (tmp_path / "train" / "cat" / ".DS_Store").write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    source = opened(tmp_path)
    assert source.class_names == ("cat", "dog")
    for split, examples in (("train", source.train), ("test", source.test)):
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
        opened(tmp_path)


@pytest.mark.bad_input
def test_a_test_image_of_another_size_is_found_at_once(tmp_path):
    write_folder(tmp_path)
    PIL.Image.new("RGB", (6, 5)).save(tmp_path / "test" / "dog" / "1.png")
    with pytest.raises(DataError, match=r"got \[5, 6, 3\] in .*test.dog.1.png and \[6, 6, 3\]"):
        opened(tmp_path)


@pytest.mark.bad_input
def test_splits_of_another_size(tmp_path):
    write_folder(tmp_path)
    for path in (tmp_path / "test").rglob("*.png"):
        PIL.Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(DataError, match=r"of the training images, \[6, 6, 3\]; got \[9, 9, 3\]"):
        opened(tmp_path)
    assert opened(tmp_path, image_size=9).test.image_shape == (9, 9, 3)


def test_classes_without_splits(tmp_path):
    """A fifth of each class is the test split, the same one every time."""
    for label, (name, num) in enumerate([("cat", 10), ("train", 5)]):  # trains are a class
        (tmp_path / name).mkdir()
        for index in range(num):
            pixels = np.full((6, 6, 3), 100 * label + index, np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    first, second = opened(tmp_path), opened(tmp_path)
    assert first.class_names == ("cat", "train")
    train, test = read_all(first.train, 1), read_all(first.test, 1)
    np.testing.assert_array_equal(test["label"], [0, 0, 1])
    values = np.concatenate([train["image"][:, 0, 0, 0], test["image"][:, 0, 0, 0]])
    assert sorted(values) == [*range(10), *range(100, 105)]
    np.testing.assert_array_equal(train["label"], train["image"][:, 0, 0, 0] // 100)
    np.testing.assert_array_equal(test["image"], read_all(second.test, 1)["image"])


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
    message = "train must have one directory of PNG, JPEG or WebP files for each class; got none"
    with pytest.raises(DataError, match=rf"{message}\.$"):
        opened(tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    (tmp_path / "train" / "cat" / "0.tif").touch()
    with pytest.raises(DataError, match=rf"{message}\. Left out: files other than PNG.*: 1 .*tif"):
        opened(tmp_path)


@pytest.mark.bad_input
def test_unknown_test_class(tmp_path):
    write_folder(tmp_path)
    shutil.copytree(tmp_path / "test" / "cat", tmp_path / "test" / "emu")
    with pytest.raises(DataError, match=r"\['cat', 'dog'\]; got \['emu'\]"):
        opened(tmp_path)


def test_what_is_left_out_is_counted_in_one_warning(tmp_path, caplog):
    written = write_folder(tmp_path)
    cat, image = tmp_path / "train" / "cat", (tmp_path / "test" / "cat" / "0.png").read_bytes()
    for name in ("a.gif", "notes.txt", "._0.png", "more/deep/1.PNG", "more/2.webp", "more/no.txt"):
        path = cat / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(image)
    (tmp_path / "train" / "0.jpg").write_bytes(image)
    (tmp_path / "train" / "__MACOSX").mkdir()
    (tmp_path / "train" / "__MACOSX" / "._0.png").touch()
    (tmp_path / "test" / "emu").mkdir()
    source = opened(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert np.bincount(source.train.read_labels()).tolist() == [3, 3]
    np.testing.assert_array_equal(
        read_all(source.train, 1)["image"], written["train", "cat"] + written["train", "dog"]
    )
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for part in (
        "files other than PNG, JPEG or WebP: 2 (such as ",
        "hidden images: 2 (such as ",
        f"images in sub-directories: 2 (such as {cat}/more/2.webp)",
        f"images beside the classes: 1 (such as {tmp_path}/train/0.jpg)",
        f"directories without images: 2 (such as {tmp_path}/train/__MACOSX)",
    ):
        assert part in record.getMessage()


def test_nothing_left_out_is_no_warning(tmp_path, caplog):
    write_folder(tmp_path)
    opened(tmp_path)
    assert not caplog.records


def test_every_promised_suffix_is_read(tmp_path):
    write_folder(tmp_path)
    image = PIL.Image.new("RGB", (6, 6), "red")
    for name in ("3.PNG", "4.jpg", "5.JPEG", "6.webp"):
        image.save(tmp_path / "train" / "cat" / name)
    assert np.bincount(opened(tmp_path).train.read_labels()).tolist() == [7, 3]


@pytest.mark.bad_input
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "no image"])
def test_a_broken_file_is_found_when_the_set_is_opened(tmp_path, split, kind):
    write_folder(tmp_path)
    suffix = "png" if kind == "no image" else kind
    path = tmp_path / split / "dog" / f"9.{suffix}"
    PIL.Image.fromarray(random_images(1, size=64)[0]).save(path)  # more pixels than header
    whole = path.read_bytes()
    path.write_bytes(b"%!PS-Adobe-3.0" if kind == "no image" else whole[: len(whole) * 3 // 5])
    with pytest.raises(DataError, match=rf"The image .*{split}.dog.9.{suffix} must be a readable"):
        opened(tmp_path, image_size=6)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_bytes_behind_an_image_are_no_fault(tmp_path, form):
    """Phones append data to JPEG files; such a file is decoded when it is opened, and accepted."""
    write_folder(tmp_path)
    path = tmp_path / "train" / "dog" / f"9{IMAGE_FORMATS[form][0]}"
    PIL.Image.new("RGB", (6, 6), "red").save(path, form)
    path.write_bytes(path.read_bytes() + b"appended")
    assert len(opened(tmp_path).train) == 7


def test_the_size_is_that_of_the_upright_image(tmp_path):
    write_folder(tmp_path, sizes=((6, 4),))
    exif = PIL.Image.Exif()
    exif[0x0112] = 8
    PIL.Image.new("RGB", (6, 4)).save(tmp_path / "train" / "dog" / "9.jpg", exif=exif)
    assert opened(tmp_path).train.image_shape == (6, 4, 3)


def test_exif_behind_the_pixels_of_a_png_counts(tmp_path):
    """The header says 4 x 6 and gives no orientation; only decoding finds the rotation."""
    written = write_folder(tmp_path, sizes=((6, 4),))
    exif = PIL.Image.Exif()
    exif[0x0112] = 8
    path = tmp_path / "train" / "cat" / "1.png"
    pixels = written["train", "cat"][1]
    PIL.Image.fromarray(np.rot90(pixels, -1).copy()).save(path, exif=exif)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    stop = content.index(b"IDAT") - 4
    path.write_bytes(content[:start] + content[stop:-12] + content[start:stop] + content[-12:])
    np.testing.assert_array_equal(opened(tmp_path).train.read(np.array([1]))["image"][0], pixels)


@pytest.mark.bad_input
def test_a_file_that_disappears_is_named(tmp_path):
    write_folder(tmp_path)
    source = opened(tmp_path)
    (tmp_path / "train" / "dog" / "1.png").unlink()
    with pytest.raises(DataError, match=r"dog.1.png must stay where it is .*; it is gone\."):
        read_all(source.train, 1)
