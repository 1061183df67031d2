"""A page on this machine to drop an image on: what a classifier says of it, and where it looked."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from vision_wrapper import explain
from vision_wrapper.classifier import Classifier, load_classifier
from vision_wrapper.data.images import decode, to_pil
from vision_wrapper.errors import SettingError, VisionWrapperError
from vision_wrapper.viz.cam import overlay

__all__ = ["explain_image", "serve"]

HOST = "127.0.0.1"  # nobody else in the network sees the page
LARGEST_UPLOAD = 50_000_000  # bytes
SHOWN_CLASSES = 5
SHOWN_SIDE = 320  # pixels of the pictures on the page
PAGE = Path(__file__).with_name("demo.html")


def explain_image(classifier: Classifier, content: bytes) -> dict[str, Any]:
    """What the page shows of an image file's bytes, as plain values.

    Returns:
        "classes": pairs (name, probability) of the likeliest; "image" and "map": data URIs of what the network got,
        and of Grad-CAM for its answer, at "layer"; "empty": whether there was no evidence to show. Of a network that
        has no maps these are None, and "no_map" says why.

    Raises:
        DataError: the bytes are no image.
    """
    preprocess = classifier.preprocess
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        path.write_bytes(content)
        image = preprocess.resize(decode(path, preprocess.channels, preprocess.decode_size))
    (prediction,) = classifier.predict([image])
    likeliest = np.argsort(prediction.probabilities)[::-1][:SHOWN_CLASSES]
    return {
        "classes": [(classifier.classes[i], float(prediction.probabilities[i])) for i in likeliest],
        "image": _data_uri(image),
        **_map(classifier, image, prediction.label),
    }


def _map(classifier: Classifier, image: np.ndarray, label: int) -> dict[str, Any]:
    """`map`, `layer`, `empty` and `no_map`, as `explain_image` returns them, for this class."""
    try:
        cams = explain.gradcam(classifier.model, classifier.preprocess.batch([image]), [label])
    except SettingError as error:  # a network that has no maps
        return {"map": None, "layer": None, "empty": None, "no_map": str(error)}
    drawn = _data_uri(overlay(image, cams.maps[0, 0]))
    return {"map": drawn, "layer": cams.layers[0], "empty": bool(cams.empty[0, 0]), "no_map": None}


def _data_uri(image: np.ndarray) -> str:
    """A PNG; small images with each pixel made a square."""
    picture = to_pil(image)
    times = max(1, SHOWN_SIDE // max(picture.size))
    picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


class _Server(ThreadingHTTPServer):
    """A thread a request; the model is borrowed while its map is made, so one image is explained at a time."""

    def __init__(self, classifier: Classifier, port: int):
        self.classifier, self.one_at_a_time = classifier, Lock()
        super().__init__((HOST, port), _Handler)

    def explain(self, content: bytes) -> dict[str, Any]:
        with self.one_at_a_time:
            return explain_image(self.classifier, content)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30  # seconds for an upload that stalls

    def do_GET(self) -> None:
        if not self._is_for_us():
            return
        if self.path == "/":
            self._answer(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        else:
            self._answer(404, b"There is nothing here.", "text/plain")

    def do_POST(self) -> None:
        if not self._is_for_us():
            return
        length = self._length()
        if self.path != "/predict" or not 0 < length <= LARGEST_UPLOAD:
            self._discard(length)
            self._answer(400, _json({"error": f"An image of at most {LARGEST_UPLOAD:,} bytes is expected."}))
            return
        try:
            content = self.rfile.read(length)
            self._answer(200, _json(self.server.explain(content)))
        except VisionWrapperError as error:
            self._answer(422, _json({"error": str(error).replace(tempfile.gettempdir(), "")}))
        except (MemoryError, RuntimeError) as error:
            self._answer(500, _json({"error": f"The image could not be classified: {type(error).__name__}."}))

    def _length(self) -> int:
        text = self.headers.get("Content-Length") or "0"
        return int(text) if text.isascii() and text.isdigit() else 0

    def _discard(self, length: int) -> None:
        """Read what is refused, a part at a time, so that whoever sends it hears the answer; not without end."""
        left = min(length, 10 * LARGEST_UPLOAD)
        while left > 0:
            part = self.rfile.read(min(left, 2**20))
            left = left - len(part) if part else 0

    def _is_for_us(self) -> bool:
        """Refuse pages of other hosts, whose names may be made to mean this machine."""
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        origin = self.headers.get("Origin")
        allowed = host in (HOST, "localhost") and origin in (None, f"http://{self.headers.get('Host')}")
        if not allowed:
            self._answer(403, b"This page answers its own machine alone.", "text/plain")
        return allowed

    def _answer(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def serve(model: Classifier | str | Path, port: int = 7860) -> ThreadingHTTPServer:
    """A server of the page for a classifier or its file, not yet running: call its `serve_forever()`.

    It answers this machine alone. `port` 0 takes a free one, which is in `server_address`. Raises what
    `load_classifier` raises, and `OSError` where the port is taken.
    """
    classifier = model if isinstance(model, Classifier) else load_classifier(model)
    return _Server(classifier, port)
