"""Data sets that are downloaded: once, checked, and named when they cannot be."""

import hashlib
import http.server
import io
import pickle
import struct
import tarfile
import threading

import numpy as np
import pytest
import torchvision
from conftest import random_images
from PIL import Image

from vision_wrapper import data
from vision_wrapper.data import DATASETS
from vision_wrapper.errors import DataNotFoundError

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar_archive(images: np.ndarray, labels: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """An archive as Krizhevsky's (five training batches, a test batch, names), and the MD5 of each file."""
    files = {"batches.meta": {"label_names": CIFAR10}}
    for i, part in enumerate(np.array_split(np.arange(len(images)), 6)):
        flat = images[part].transpose(0, 3, 1, 2).reshape(len(part), -1)  # channels first, as rows
        files["test_batch" if i == 5 else f"data_batch_{i + 1}"] = {"data": flat, "labels": labels[part].tolist()}
    buffer, md5 = io.BytesIO(), {}
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            blob = pickle.dumps(content, protocol=2)
            md5[name] = hashlib.md5(blob).hexdigest()
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(blob)
            archive.addfile(info, io.BytesIO(blob))
    return buffer.getvalue(), md5


@pytest.fixture
def served(tmp_path, monkeypatch):
    """torchvision's CIFAR10 with 60 images of its own, on this machine; counts the requests."""
    images, labels = random_images(60, 32), np.arange(60) % 10
    blob, md5 = cifar_archive(images, labels)
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(blob)))
            self.end_headers()
            self.wfile.write(blob)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz")
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(blob).hexdigest())
    monkeypatch.setattr(kind, "train_list", [[f"data_batch_{i}", md5[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(kind, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5["batches.meta"]})
    yield images, labels, requests
    server.shutdown()
    server.server_close()


def test_cifar10_is_downloaded_once_and_checked(served, tmp_path):
    images, labels, requests = served
    asked = None
    for _ in range(2):
        cifar = data.load("cifar10", root=tmp_path / "root")
        assert requests and len(requests) == (asked or len(requests))  # the second time, nothing more
        asked = len(requests)
        assert len(cifar.train) == 50 and len(cifar.test) == 10
        assert np.array_equal(cifar.train.images, images[:50]) and cifar.train.labels.tolist() == labels[:50].tolist()
        assert cifar.classes[3] == "cat" and cifar.mean == DATASETS["cifar10"].mean
    grey = data.load("cifar10", root=tmp_path / "root", channels=1)
    assert grey.train[0][0].shape == (32, 32, 1) and grey.mean is None
    assert np.array_equal(grey.train[0][0][..., 0], np.asarray(Image.fromarray(images[0]).convert("L")))
    assert len(data.make_loaders(grey).preprocess.mean) == 1  # computed, as they are not known


def test_a_wrong_checksum_is_an_error(served, tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(DataNotFoundError, match="cifar10 is not in"):
        data.load("cifar10", root=tmp_path)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_offline_the_error_names_digits(name, tmp_path, monkeypatch):
    import urllib.error
    import urllib.request

    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(DataNotFoundError, match=rf"(?s){name} is not in .*data\.load\(\"digits\"\)"):
        data.load(name, root=tmp_path)


def test_an_error_without_words_is_named(monkeypatch):
    def times_out(root, channels):
        raise TimeoutError

    monkeypatch.setitem(DATASETS, "slow", data.DataSource(times_out, (0.5,), (0.2,), "never arrives"))
    with pytest.raises(DataNotFoundError, match="could not be downloaded: TimeoutError"):
        data.load("slow")


def test_mnist_as_torchvision_stores_it(tmp_path):
    for kind, name in (("MNIST", "mnist"), ("FashionMNIST", "fashion_mnist")):
        folder = tmp_path / kind / "raw"
        folder.mkdir(parents=True)
        grey, labels = random_images(12, 28, channels=1)[..., 0], np.arange(12, dtype=np.uint8) % 10
        for part, count in (("train", 12), ("t10k", 5)):
            header = struct.pack(">IIII", 0x803, count, 28, 28)
            (folder / f"{part}-images-idx3-ubyte").write_bytes(header + grey[:count].tobytes())
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(
                struct.pack(">II", 0x801, count) + labels[:count].tobytes()
            )
        loaded = data.load(name, root=tmp_path)
        assert len(loaded.train) == 12 and len(loaded.test) == 5 and len(loaded.classes) == 10
        assert np.array_equal(loaded.train[4][0], np.repeat(grey[4][..., None], 3, -1)) and loaded.train[4][1] == 4
        assert loaded.mean == DATASETS[name].mean * 3
        assert data.load(name, root=tmp_path, channels=1).train[0][0].shape == (28, 28, 1)
