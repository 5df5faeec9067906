"""Download and preparation of CIFAR archives, from a local HTTP server."""

import dataclasses
import functools
import hashlib
import http.server
import pathlib
import tarfile
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mlg_jax.data import DataSpec, load_dataset, prepare_cifar
from mlg_jax.data._cifar import ARCHIVES
from mlg_jax.data._examples import read_all
from mlg_jax.data._sources import open_source
from tests.data._tiny import LAYOUTS, cifar_files, write_archive


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if not self.path.startswith("/truncated"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 400)


@pytest.fixture
def server(tmp_path):
    """Serves `tmp_path / "www"`; yields the address and the directory."""
    root = tmp_path / "www"
    root.mkdir()
    handler = functools.partial(_Handler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", root
        httpd.shutdown()
        thread.join()


def nothing_is_left(data_dir):
    return not [path for path in pathlib.Path(data_dir).rglob("*") if path.is_file()]


def sorted_records(images, *labels):
    rows = [images.reshape(len(images), -1), *(label[:, None] for label in labels)]
    return sorted(map(bytes, np.concatenate(rows, axis=1).astype(np.uint8)))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_prepare_from_a_server(name, server, tmp_path):
    url, root = server
    files = cifar_files(name)
    md5 = write_archive(root / "archive.tar.gz", name, files)
    data_dir = str(tmp_path / "data")
    prepared = prepare_cifar(name, data_dir, url=f"{url}/archive.tar.gz", md5=md5)
    assert prepared == f"{data_dir}/{name}/3.0.2"
    kinds = {path.suffix for path in pathlib.Path(data_dir).rglob("*") if path.is_file()}
    assert ".gz" not in kinds  # the archive is removed

    source = open_source(DataSpec(name=name, data_dir=data_dir, download=False))
    layout = LAYOUTS[name]
    num_labels = layout["num_label_bytes"]
    for split, examples in (("train", source.train), ("test", source.test)):
        raw = b"".join(files[f] for f in layout["files"] if ("test" in f) == (split == "test"))
        records = np.frombuffer(raw, np.uint8).reshape(-1, num_labels + 3072)
        # Pixels are stored plane by plane; the last label byte is the fine label.
        expected = np.moveaxis(records[:, num_labels:].reshape(-1, 3, 32, 32), 1, -1)
        batch = read_all(examples, 1)
        found = sorted_records(batch["image"], batch["label"])
        assert found == sorted_records(expected, records[:, num_labels - 1])
    prefix = "batches.meta" if name == "cifar10" else "fine_label_names"
    assert source.class_names[:2] == (f"{prefix}_0", f"{prefix}_1")


def test_features_are_those_of_tensorflow_datasets(server, tmp_path):
    url, root = server
    md5 = write_archive(root / "a.tar.gz", "cifar100", cifar_files("cifar100"))
    prepared = prepare_cifar("cifar100", str(tmp_path / "data"), url=f"{url}/a.tar.gz", md5=md5)
    ours = tfds.builder_from_directory(prepared).info.features
    theirs = tfds.builder("cifar100", data_dir=str(tmp_path / "none")).info.features
    assert set(ours) == set(theirs)
    assert ours["image"].shape == theirs["image"].shape
    assert ours["label"].num_classes == theirs["label"].num_classes
    assert ours["coarse_label"].num_classes == theirs["coarse_label"].num_classes


def test_a_prepared_set_is_not_fetched_again(server, tmp_path):
    url, root = server
    md5 = write_archive(root / "a.tar.gz", "cifar10", cifar_files("cifar10"))
    data_dir = str(tmp_path / "data")
    first = prepare_cifar("cifar10", data_dir, url=f"{url}/a.tar.gz", md5=md5)
    assert prepare_cifar("cifar10", data_dir, url=f"{url}/gone", md5="none") == first


def test_load_dataset_downloads_what_is_missing(server, tmp_path, monkeypatch):
    url, root = server
    md5 = write_archive(root / "a.tar.gz", "cifar10", cifar_files("cifar10"))
    local = dataclasses.replace(ARCHIVES["cifar10"], url=f"{url}/a.tar.gz", md5=md5)
    monkeypatch.setitem(ARCHIVES, "cifar10", local)
    spec = DataSpec(name="cifar10", data_dir=str(tmp_path / "data"), batch_size=10)
    dataset = load_dataset(spec)
    assert (dataset.num_train, dataset.num_validation, dataset.image_shape) == (54, 6, (32, 32, 3))


def test_an_archive_on_disk(tmp_path):
    path = tmp_path / "a.tar.gz"
    md5 = write_archive(path, "cifar10", cifar_files("cifar10"))
    prepared = prepare_cifar("cifar10", str(tmp_path / "data"), url=path.as_uri(), md5=md5)
    assert list(pathlib.Path(prepared).rglob("*.array_record*"))


@pytest.mark.bad_input
def test_wrong_checksum(server, tmp_path):
    url, root = server
    md5 = write_archive(root / "a.tar.gz", "cifar10", cifar_files("cifar10"))
    wrong = ARCHIVES["cifar10"].md5
    with pytest.raises(ValueError, match=f"The MD5 of {url}/a.tar.gz must be {wrong}; got {md5}"):
        prepare_cifar("cifar10", str(tmp_path / "data"), url=f"{url}/a.tar.gz")
    assert nothing_is_left(tmp_path / "data")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("path", "reason"),
    [("gone", "HTTP Error 404"), ("truncated", "it ended after 400 of 1000 bytes")],
)
def test_failed_download(server, tmp_path, path, reason):
    url, _ = server
    data_dir = tmp_path / "data"
    message = (
        rf"The data set 'cifar10' is not in {data_dir}, and the download of {url}/{path} failed: "
        rf".*{reason}.*prepare_cifar\('cifar10', '{data_dir}', url='file:///PATH'\)"
    )
    with pytest.raises(OSError, match=message):
        prepare_cifar("cifar10", str(data_dir), url=f"{url}/{path}")
    assert nothing_is_left(data_dir)


@pytest.mark.bad_input
def test_nobody_answers(tmp_path):
    with pytest.raises(OSError, match="the download of http://127.0.0.1:9/a failed"):
        prepare_cifar("cifar10", str(tmp_path), url="http://127.0.0.1:9/a")
    assert nothing_is_left(tmp_path)


def _without(name):
    return lambda files: {key: value for key, value in files.items() if key != name}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _without("test_batch.bin"),
            "must have the regular file cifar-10-batches-bin/test_batch.bin",
        ),
        (
            lambda files: files | {"batches.meta.txt": b"\xff"},
            "must be a complete tar.gz archive; 'utf-8' codec",
        ),
        (_without("batches.meta.txt"), "must have the regular file .*batches.meta.txt"),
        (
            lambda files: files | {"data_batch_2.bin": files["data_batch_2.bin"][:-1]},
            r"data_batch_2.bin must have whole records of 3073 bytes; got 36875 bytes",
        ),
        (lambda files: files | {"data_batch_1.bin": b""}, "whole records .*; got 0 bytes"),
        (
            lambda files: files | {"test_batch.bin": bytes([10]) + bytes(3072)},
            r"`labels` of label in .*test_batch.bin must be in \[0, 9\]; got 10 at index 0",
        ),
    ],
)
def test_archives_that_are_not_cifar(tmp_path, change, message):
    path = tmp_path / "a.tar.gz"
    md5 = write_archive(path, "cifar10", change(cifar_files("cifar10")))
    with pytest.raises(ValueError, match=message):
        prepare_cifar("cifar10", str(tmp_path / "data"), url=path.as_uri(), md5=md5)
    assert nothing_is_left(tmp_path / "data")


@pytest.mark.bad_input
def test_a_truncated_archive_of_the_right_checksum(tmp_path):
    path = tmp_path / "a.tar.gz"
    write_archive(path, "cifar10", cifar_files("cifar10"))
    path.write_bytes(path.read_bytes()[:-2000])
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="must be a complete tar.gz archive"):
        prepare_cifar("cifar10", str(tmp_path / "data"), url=path.as_uri(), md5=md5)
    assert nothing_is_left(tmp_path / "data")


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["out", "itself"])
def test_links_are_not_followed(tmp_path, kind, target):
    """Links, to outside the archive or to themselves, are not treated as files of the archive."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(3073))
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file in cifar_files("cifar10"):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{file}")
            linked = (
                str(secret) if target == "out" else info.name if kind == tarfile.LNKTYPE else file
            )
            info.type, info.linkname = kind, linked
            archive.addfile(info)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="The archive must have the regular file"):
        prepare_cifar("cifar10", str(tmp_path / "data"), url=path.as_uri(), md5=md5)


@pytest.mark.bad_input
def test_a_failure_while_preparing_leaves_nothing(tmp_path, monkeypatch):
    """Simulates a full disk: the third image cannot be written."""
    path = tmp_path / "a.tar.gz"
    md5 = write_archive(path, "cifar10", cifar_files("cifar10"))

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tfds.features.Image, "encode_example", full)
    with pytest.raises(OSError, match="No space left on device"):
        prepare_cifar("cifar10", str(tmp_path / "data"), url=path.as_uri(), md5=md5)
    assert nothing_is_left(tmp_path / "data")


@pytest.mark.bad_input
def test_only_cifar_is_prepared(tmp_path):
    with pytest.raises(ValueError, match=r"`name` must be one of \['cifar10', 'cifar100'\]; got"):
        prepare_cifar("mnist", str(tmp_path))
