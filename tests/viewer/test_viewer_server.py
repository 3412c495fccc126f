"""The real server over real sockets: what it gives, what it refuses, and that nothing brings it down."""

import json
import shutil
import socket
import struct
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running_viewer import served
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from scene_distill.core.errors import UserError
from scene_distill.viewer.access import checked_token


@pytest.fixture(scope="module")
def viewer(town_run, tmp_path_factory):
    with served(town_run, tmp_path_factory.mktemp("films")) as running:
        yield running


def page(viewer, target: str, **headers) -> tuple[int, bytes, dict]:
    request = urllib.request.Request(viewer.url + target, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


class Browser:
    def __init__(self, viewer, **options) -> None:
        self._open = connect(viewer.url.replace("http", "ws") + "/ws", max_size=None, **options)
        self.socket = self._open.__enter__()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._open.__exit__(*error)

    def send(self, message) -> None:
        self.socket.send(message if isinstance(message, (str, bytes)) else json.dumps(message))

    def until(self, kind: str) -> dict:
        """The next message of a kind; a picture has 'header' and 'parts'."""
        while True:
            data = self.socket.recv(timeout=60)
            if isinstance(data, bytes):
                length = struct.unpack("<I", data[:4])[0]
                header, at, parts = json.loads(data[4 : 4 + length]), 4 + length, []
                for size in header["sizes"]:
                    parts.append(data[at : at + size])
                    at += size
                assert at == len(data)
                found = {"type": "picture", "header": header, "parts": parts}
            else:
                found = json.loads(data)
            if found["type"] == kind:
                return found


def camera(viewer, width: int = 96, height: int = 72, index: int = 5) -> dict:
    pose = viewer.session.frames[index].camera.cam_from_world
    return {"pose": pose.ravel().tolist(), "fov": 0.9, "width": width, "height": height}


def render(viewer, **changes) -> dict:
    return {"type": "render", "id": 1, "camera": camera(viewer), "layers": ["rgb"]} | changes


def decoded(data: bytes) -> np.ndarray:
    from io import BytesIO

    return np.asarray(Image.open(BytesIO(data)))


def test_a_browser_is_told_what_there_is_and_gets_pictures(viewer):
    with Browser(viewer) as browser:
        hello = browser.until("hello")
        assert hello["title"] == "town-run" and len(hello["frames"]) == 24 and len(hello["blocks"]) == 2
        assert browser.until("status")["state"] == "finished"
        history = browser.until("history")
        assert len(history["run"]["loss"]) == 24 and len(history["blocks"]["0"]["psnr"]) == 5
        browser.send(render(viewer, layers=["rgb", "difference"], quality=0))
        picture = browser.until("picture")
        assert [decoded(part).shape for part in picture["parts"]] == [(72, 96, 3)] * 2
        assert decoded(picture["parts"][0]).std() > 10


def test_the_photo_layers_stand_where_the_photo_was_taken(viewer):
    with Browser(viewer) as browser:
        browser.send(render(viewer, layers=["photo", "rgb"], quality=0, camera=camera(viewer, index=9)))
        header = browser.until("picture")["header"]
        assert header["frame"] == 9
        assert header["camera"]["width"] / header["camera"]["height"] == pytest.approx(4 / 3, rel=0.02)


def test_a_pick_says_which_gaussians_made_the_pixel(viewer):
    with Browser(viewer) as browser:
        browser.send(render(viewer, type="pick", x=40, y=30, purpose="inspect"))
        found = browser.until("picked")
        assert found["purpose"] == "inspect" and found["alpha"] > 0.5 and len(found["point"]) == 3
        weights = [share["weight"] for share in found["shares"]]
        assert weights == sorted(weights, reverse=True) and found["shares"][0]["block"] in (0, 1)


@pytest.mark.parametrize("hostile", [
    "", "{", "null", '{"type":"render"}', b"\x00" * 100, "[" * 60_000, "y" * 70_000, '{"type":"constructor"}',
    json.dumps({"type": "render", "id": 1, "layers": ["../../etc/passwd"], "camera": {}}),
    json.dumps({"type": "steer", "command": "set", "name": "__class__", "value": 1}),
])  # fmt: skip
def test_hostile_messages_are_refused_with_a_sentence_and_the_connection_goes_on(viewer, hostile):
    with Browser(viewer) as browser:
        browser.send(hostile)
        why = browser.until("refused")["why"]
        assert why and "\n" not in why and "Traceback" not in why
        browser.send(render(viewer))
        assert browser.until("picture")["header"]["id"] == 1


def test_an_oversized_frame_closes_that_connection_only(viewer):
    with Browser(viewer) as other, Browser(viewer) as browser:
        browser.send("x" * 3_000_000)
        with pytest.raises(ConnectionClosed) as closed:
            browser.until("refused")
        assert closed.value.rcvd.code == 1009
        other.send(render(viewer))
        assert other.until("picture")


def test_what_does_not_train_cannot_be_steered(viewer):
    with Browser(viewer) as browser:
        browser.send({"type": "steer", "command": "pause"})
        assert "not training" in browser.until("refused")["why"]
    assert not (viewer.session.folder / "control.jsonl").exists()


@pytest.mark.parametrize("target", [
    "/client/../server.py", "/client/%2e%2e/server.py", "/client//etc/passwd", "/../../etc/passwd", "/etc/passwd",
    "/client/..%2fserver.py", "/photo/../config.yaml", "/photo/-1", "/photo/999", "/photo/1e3?w=9", "/photo/0?w=x",
    "/film/0", "/film/..", "/splats/1",
    "/splats/0", "/splats/..", "/splats/", "/config.yaml", "/client/", "/photo/٣", "/client/main.js%00.css",
])  # fmt: skip
def test_paths_outside_are_refused(viewer, target):
    status, body, _ = page(viewer, urllib.request.quote(target, safe="/%?=&.-"))
    assert status in (400, 404) and body.count(b"\n") == 1 and b"import" not in body


def test_the_client_and_the_photos_are_served_from_this_port_alone(viewer):
    status, body, headers = page(viewer, "/")
    assert status == 200 and b"<script" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    for file in (Path(__file__).parents[2] / "viewer" / "client").iterdir():
        text = file.read_text()
        assert page(viewer, f"/client/{file.name}")[0] == 200
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    status, body, headers = page(viewer, "/photo/3?w=80")
    assert status == 200 and headers["Content-Type"] == "image/jpeg" and decoded(body).shape == (60, 80, 3)


@pytest.mark.parametrize("raw", [
    b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"\x16\x03\x01\x02\x00" + b"\x00" * 300,
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
])  # fmt: skip
def test_what_is_no_http_request_does_not_bring_the_server_down(viewer, raw):
    with socket.create_connection(("127.0.0.1", viewer.port), timeout=20) as plain:
        plain.sendall(raw)
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(65536):
            pass
    assert page(viewer, "/")[0] == 200


def test_other_sites_and_other_names_are_refused(viewer):
    assert page(viewer, "/", Host="evil.example")[0] == 403
    assert page(viewer, "/", Host=f"localhost:{viewer.port}")[0] == 200
    assert page(viewer, "/", Host="localhost:9999")[0] == 200  # the other end of a tunnel
    with pytest.raises(InvalidStatus) as refused:
        Browser(viewer, origin="http://evil.example")
    assert refused.value.response.status_code == 403


def test_with_a_token_only_who_has_it_may_look(splat_file, tmp_path):
    with served(splat_file, tmp_path, token="tell-nobody") as viewer:
        for target in ("/", "/client/main.js", "/photo/0", "/?token=wrong", "/?token="):
            assert page(viewer, target)[0] == 403
        with pytest.raises(InvalidStatus):
            Browser(viewer)
        status, _, headers = page(viewer, "/?token=tell-nobody", Host="some.machine:80")
        assert status == 200 and "HttpOnly" in headers["Set-Cookie"] and "SameSite=Strict" in headers["Set-Cookie"]
        cookie = headers["Set-Cookie"].split(";")[0]
        assert page(viewer, "/client/main.js", Cookie=cookie)[0] == 200
        assert page(viewer, "/", Cookie=cookie + "x")[0] == 403
        with Browser(viewer, additional_headers={"Cookie": cookie}) as browser:
            assert browser.until("hello")["kind"] == "file"


def test_other_machines_need_a_token():
    assert all(checked_token(host, "") == "" for host in ("127.0.0.1", "localhost", "::1"))
    assert len(checked_token("0.0.0.0", "new")) >= 20
    for host, token in (("0.0.0.0", ""), ("192.168.1.2", ""), ("::", ""), ("0.0.0.0", "short")):
        with pytest.raises(UserError):
            checked_token(host, token)


def test_two_browsers_look_at_different_things_at_once(viewer):
    with Browser(viewer) as one, Browser(viewer) as other:
        for number in range(3):
            one.send(render(viewer, id=number, quality=0))
            other.send(render(viewer, id=number, quality=0, camera=camera(viewer, 64, 64, 11)))
            first, second = one.until("picture"), other.until("picture")
            assert decoded(first["parts"][0]).shape == (72, 96, 3) and decoded(second["parts"][0]).shape == (64, 64, 3)
            assert first["header"]["id"] == second["header"]["id"] == number


def test_of_a_burst_the_newest_request_is_answered(viewer):
    with Browser(viewer) as browser:
        for number in range(30):
            browser.send(render(viewer, id=number))
        answered, given_up = [], 0
        while 29 not in answered:
            data = browser.socket.recv(timeout=60)
            if isinstance(data, bytes):
                answered.append(json.loads(data[4 : 4 + struct.unpack("<I", data[:4])[0]])["id"])
            else:
                given_up += json.loads(data)["type"] == "superseded"
        assert given_up + len(answered) == 30 and given_up > 0


def test_a_browser_that_vanishes_leaves_the_others_alone(viewer):
    browser = Browser(viewer)
    browser.send(render(viewer, camera=camera(viewer, 800, 600)))
    browser.socket.socket.close()
    with Browser(viewer) as other:
        other.send(render(viewer))
        assert other.until("picture")


def test_a_server_that_was_restarted_answers_on_the_same_port(splat_file, tmp_path):
    with served(splat_file, tmp_path) as viewer:
        port = viewer.port
        with Browser(viewer) as browser:
            browser.until("hello")
            viewer.stop()
            with pytest.raises(ConnectionClosed):
                browser.until("never")
        viewer.start()
        assert viewer.port == port
        with Browser(viewer) as browser:
            assert browser.until("hello")["title"] == "town.ply"


def test_a_film_is_made_of_a_path_and_can_be_fetched(viewer):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    with Browser(viewer) as browser:
        keyframes = [camera(viewer, 65, 48, index) for index in (3, 4)]
        browser.send({"type": "path", "keyframes": keyframes, "seconds": 0.5, "fps": 10, "layer": "rgb"})
        while "number" not in (told := browser.until("film")):
            pass
        assert told["done"] == told["of"] == 5
    status, body, headers = page(viewer, f"/film/{told['number']}")
    assert status == 200 and headers["Content-Type"] == "video/mp4" and body[4:8] == b"ftyp"
    assert not list(viewer.films.glob(".*"))


def test_a_film_that_is_cancelled_leaves_nothing_behind(viewer):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    before = set(viewer.films.iterdir()) if viewer.films.exists() else set()
    with Browser(viewer) as browser:
        keyframes = [camera(viewer, 640, 480, index) for index in (3, 4)]
        browser.send({"type": "path", "keyframes": keyframes, "seconds": 60, "fps": 30, "layer": "rgb"})
        browser.until("film")
        browser.send({"type": "cancel"})
        browser.send(render(viewer))
        browser.until("picture")
    for _ in range(100):
        if set(viewer.films.iterdir()) == before:
            return
        time.sleep(0.1)
    raise AssertionError(set(viewer.films.iterdir()) - before)
