"""The local page: what it answers, whom, and that it shows names as text."""

import http.client
import io
import json
import os
import socket
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from runs import command

from vision_wrapper import load_classifier, models, save_classifier
from vision_wrapper.data import Preprocess
from vision_wrapper.demo import explain_image, serve
from vision_wrapper.errors import DataError

NAMES = ("<b>ant</b>", "bee", "cat")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("demo") / "classifier.safetensors"
    model = models.CustomResNet(num_classes=3, widths=(4, 4, 8, 8))
    save_classifier(path, model, Preprocess(16, 3, (0.5,) * 3, (0.2,) * 3), NAMES)
    return path


@pytest.fixture
def server(file):
    made = serve(file, port=0)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def png(seed=0, side=20):
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def ask(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(*server.server_address, timeout=30)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def test_an_image_is_classified_as_the_classifier_does(server, file, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    expected = load_classifier(file).predict(tmp_path / "a.png")[0]
    status, content = ask(server, "POST", "/predict", png())
    found = json.loads(content)
    assert status == 200 and found["classes"][0] == [expected.name, pytest.approx(expected.probability, abs=1e-5)]
    assert sum(share for _, share in found["classes"]) == pytest.approx(1, abs=1e-5)
    assert found["image"].startswith("data:image/png;base64,") and found["layer"] == "layer1"
    assert explain_image(load_classifier(file), png())["map"] == found["map"]


def test_a_network_without_maps_still_answers(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    path = tmp_path / "linear.safetensors"
    save_classifier(path, model, Preprocess(16, 3, (0.5,) * 3, (0.2,) * 3), NAMES)
    found = explain_image(load_classifier(path, model=model), png())
    assert sum(share for _, share in found["classes"]) == pytest.approx(1, abs=1e-5)
    assert found["image"].startswith("data:image/png;base64,")
    assert found["map"] is None and "gives a map" in found["no_map"]


def test_what_is_no_image_is_said_without_a_path(server, file):
    status, content = ask(server, "POST", "/predict", b"not an image")
    assert status == 422 and "cannot be decoded" in json.loads(content)["error"]
    assert os.path.sep + "tmp" not in json.loads(content)["error"]
    with pytest.raises(DataError):
        explain_image(load_classifier(file), b"")
    assert ask(server, "POST", "/predict", b"")[0] == 400
    assert ask(server, "POST", "/elsewhere", png())[0] == 400 and ask(server, "GET", "/etc/passwd")[0] == 404


def test_what_is_too_large_is_said(server, monkeypatch):
    from vision_wrapper import demo

    monkeypatch.setattr(demo, "LARGEST_UPLOAD", 2_000_000)
    status, content = ask(server, "POST", "/predict", b"x" * 2_000_001)
    assert status == 400 and "at most 2,000,000 bytes" in json.loads(content)["error"]
    with socket.create_connection(server.server_address, timeout=30) as raw:
        host = f"127.0.0.1:{server.server_address[1]}"
        raw.sendall(f"POST /predict HTTP/1.0\r\nHost: {host}\r\nContent-Length: abc\r\n\r\n".encode())
        assert b" 400 " in raw.recv(1000)


def test_it_answers_its_own_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "GET", "/")[0] == 200
    assert ask(server, "GET", "/", Host="evil.example")[0] == 403
    assert ask(server, "POST", "/predict", png(), Origin="http://evil.example")[0] == 403
    own = f"http://127.0.0.1:{server.server_address[1]}"
    assert ask(server, "POST", "/predict", png(), Origin=own)[0] == 200


def test_several_at_once_each_get_their_own(server):
    alone = [json.loads(ask(server, "POST", "/predict", png(seed))[1]) for seed in range(4)]
    together = [None] * 4

    def one(seed):
        together[seed] = json.loads(ask(server, "POST", "/predict", png(seed))[1])

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_a_port_that_is_taken_is_said(file, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = command("demo", file, "--port", taken.getsockname()[1], cwd=tmp_path, expect=2)
    assert "choose another with --port" in said
    said = command("demo", "nofile.safetensors", cwd=tmp_path, expect=2)
    assert "nofile.safetensors" in said and "--port" not in said
    assert "65535" in command("demo", file, "--port", 70000, cwd=tmp_path, expect=2)


def test_the_page_shows_names_as_text(server, browser, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    page = browser.new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
    page.set_input_files("#file", tmp_path / "a.png")
    page.wait_for_selector("#found:not([hidden])")
    assert NAMES[0] in page.locator("#classes").inner_text() and page.locator("#classes b").count() == 0
    assert page.evaluate("document.getElementById('map').naturalWidth") == 320
    (tmp_path / "b.png").write_bytes(b"no image")
    page.set_input_files("#file", tmp_path / "b.png")
    page.locator("#error:not(:empty)").wait_for()
    assert "cannot be decoded" in page.locator("#error").inner_text() and not page.locator("#found").is_visible()
    assert complaints == []
    page.close()
