"""Downloads CIFAR-10 and CIFAR-100 and prepares them for tensorflow-datasets, without TensorFlow.

It reads the *binary* archives: no pickle is loaded, nothing is extracted to disk, and every length
is checked. The prepared files are interchangeable with those of tensorflow-datasets' own
`cifar10/3.0.2` and `cifar100/3.0.2`.
"""

import dataclasses
import hashlib
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from mlg_jax._checks import check_choice
from mlg_jax._errors import printable
from mlg_jax.data._examples import check_labels

_VERSION = "3.0.2"
_SIDE = 32
_PIXEL_BYTES = 3 * _SIDE * _SIDE  # per image: the red, the green and the blue plane
_TIMEOUT_SECONDS = 60.0
_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Archive:
    """A binary CIFAR archive.

    A record holds one label byte per entry of `label_files`, in that order, and then 3,072 bytes of
    pixels.
    """

    url: str
    md5: str  # as published with the archive
    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    label_files: dict[str, str]  # from a feature to the file that lists its class names


ARCHIVES = {
    "cifar10": Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train_files=tuple(f"data_batch_{index}.bin" for index in range(1, 6)),
        test_files=("test_batch.bin",),
        label_files={"label": "batches.meta.txt"},
    ),
    "cifar100": Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train_files=("train.bin",),
        test_files=("test.bin",),
        label_files={"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class CifarSplit:
    """One split: images, uint8 [n, 32, 32, 3], and labels, uint8 [n], by feature name."""

    images: np.ndarray
    labels: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class CifarContent:
    """The contents of an archive."""

    class_names: dict[str, list[str]]
    splits: dict[str, CifarSplit]


def _fetch(url: str, path: str) -> str:
    """Saves `url` at `path` and returns its MD5; raises OSError if the download is incomplete."""
    digest, num_bytes = hashlib.md5(usedforsecurity=False), 0
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as reply, open(path, "wb") as file:
        expected = reply.headers.get("Content-Length")
        while chunk := reply.read(_CHUNK_BYTES):
            num_bytes += file.write(chunk)
            digest.update(chunk)
    if expected is not None and num_bytes != int(expected):
        raise OSError(f"it ended after {num_bytes} of {expected} bytes")
    return digest.hexdigest()


def prepare_command(name: str, data_dir: str, url: str | None = None) -> str:
    """The shell command that prepares `name` in `data_dir`, from `url` or the authors' server."""
    place = "" if url is None else f", url='{url}'"
    call = f"prepare_cifar('{name}', '{data_dir}'{place})"
    return f'python -c "from mlg_jax.data import prepare_cifar; {call}"'


def _download(name: str, data_dir: str, url: str, md5: str, path: str) -> None:
    """Saves `url` at `path` and verifies its checksum."""
    try:
        found = _fetch(url, path)
    except (OSError, ValueError) as error:
        command = prepare_command(name, data_dir, "file:///PATH")
        raise OSError(
            f"The data set {name!r} is not in {data_dir}, and the download of {url} failed: "
            f"{error}. Fetch the archive by other means, then: {command}"
        ) from error
    if found != md5:
        raise ValueError(f"The MD5 of {url} must be {md5}; got {found}.")


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    """The bytes of one regular file of an archive; links, which may form loops, are ignored."""
    found = {info.name: info for info in archive.getmembers() if info.isreg()}
    file = archive.extractfile(found[name]) if name in found else None
    if file is None:
        names = printable(archive.getnames())
        raise ValueError(f"The archive must have the regular file {name}; got {names}.")
    return file.read()


def _parse(name: str, content: bytes, class_names: dict[str, list[str]]) -> CifarSplit:
    """Parses the records of one file into images and labels."""
    num_labels = len(class_names)
    record_bytes = num_labels + _PIXEL_BYTES
    if not content or len(content) % record_bytes:
        raise ValueError(
            f"{name} must have whole records of {record_bytes} bytes; got {len(content)} bytes."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record_bytes)
    planes = records[:, num_labels:].reshape(-1, 3, _SIDE, _SIDE)
    labels = {feature: records[:, index] for index, feature in enumerate(class_names)}
    for feature, values in labels.items():
        check_labels(f"{feature} in {name}", values, len(class_names[feature]))
    return CifarSplit(planes.transpose(0, 2, 3, 1), labels)


def _concatenate(parts: list[CifarSplit]) -> CifarSplit:
    """Joins parts in their order."""
    labels = {
        feature: np.concatenate([part.labels[feature] for part in parts])
        for feature in parts[0].labels
    }
    return CifarSplit(np.concatenate([part.images for part in parts]), labels)


def read_archive(path: str, layout: Archive) -> CifarContent:
    """Reads and checks a whole archive, without extracting it.

    Raises:
        ValueError: a file is missing or damaged, or a label is out of range.
    """

    def read(archive: tarfile.TarFile, files: tuple[str, ...]) -> CifarSplit:
        names = [f"{layout.folder}/{file}" for file in files]
        return _concatenate([_parse(name, _member(archive, name), classes) for name in names])

    try:
        with tarfile.open(path, "r:gz") as archive:
            classes = {
                feature: _member(archive, f"{layout.folder}/{file}").decode("utf-8").split()
                for feature, file in layout.label_files.items()
            }
            splits = {"train": read(archive, layout.train_files)}
            splits["test"] = read(archive, layout.test_files)
    except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(
            f"{path} must be a complete tar.gz archive; {printable(error)}."
        ) from error
    return CifarContent(classes, splits)


def _builder_class(name: str, content: CifarContent) -> Any:
    """A tensorflow-datasets builder of `content`.

    It yields Pillow images because tensorflow-datasets encodes those without TensorFlow, unlike
    arrays.
    """
    import PIL.Image
    import tensorflow_datasets as tfds

    labels = {
        feature: tfds.features.ClassLabel(names=names)
        for feature, names in content.class_names.items()
    }
    image = tfds.features.Image(shape=(_SIDE, _SIDE, 3), encoding_format="png")
    features = {"id": tfds.features.Text(), "image": image, **labels}

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version(_VERSION)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split in content.splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            part = content.splits[split]
            for index, pixels in enumerate(part.images):
                values = {feature: int(part.labels[feature][index]) for feature in part.labels}
                picture = PIL.Image.fromarray(np.ascontiguousarray(pixels))
                # The key decides the order of the records; tensorflow-datasets uses the index too.
                yield index, {"id": f"{split}_{index:05d}", "image": picture, **values}

    Builder.name = name
    return Builder


def _is_prepared(directory: str) -> bool:
    """Whether `directory` is complete: tensorflow-datasets renames it into place at the end."""
    return os.path.isfile(os.path.join(directory, "dataset_info.json"))


def _prepare(name: str, data_dir: str, content: CifarContent, temporary: str) -> None:
    """Writes the array_record files; after a failure tensorflow-datasets removes its own files."""
    import tensorflow_datasets as tfds

    builder = _builder_class(name, content)(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(
        download_dir=os.path.join(temporary, "downloads"),
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )


def prepare_cifar(
    name: str, data_dir: str, *, url: str | None = None, md5: str | None = None
) -> str:
    """Downloads, verifies and prepares a CIFAR archive, unless it is already prepared.

    The archive (170 MB) is kept in a temporary directory inside `data_dir` while it is prepared.
    A failure leaves no files behind.

    Args:
        name: `cifar10` or `cifar100`.
        data_dir: data directory of tensorflow-datasets.
        url: address of the archive, which may start with `file:///`; None uses the authors'.
        md5: expected checksum of the archive in hexadecimal; None uses the published one.

    Returns:
        The prepared directory.

    Raises:
        OSError: the download failed.
        ValueError: `name` is unknown, the checksum does not match, or the file is not a CIFAR
            archive.
    """
    check_choice("name", name, ARCHIVES)
    layout = ARCHIVES[name]
    data_dir = os.path.expanduser(data_dir)
    prepared = os.path.join(data_dir, name, _VERSION)
    if _is_prepared(prepared):
        return prepared
    os.makedirs(data_dir, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}_", dir=data_dir) as temporary:
        path = os.path.join(temporary, "archive.tar.gz")
        _download(name, data_dir, url or layout.url, md5 or layout.md5, path)
        try:
            _prepare(name, data_dir, read_archive(path, layout), temporary)
        except OSError:
            if not _is_prepared(prepared):  # otherwise another process was faster
                raise
    return prepared
