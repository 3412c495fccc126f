"""The port: pages over HTTP, and a websocket per browser that takes requests and sends pictures and news.

Text messages to a browser: hello (what there is; again when the scene has changed), status (every second when it is
new), history, picked, film, said (a sentence). Binary messages are pictures (`encoding.framed`). A request that cannot
be met is answered with {"type": "refused", "why": sentence, "id": its number or null}; the connection stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import websockets
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.viewer import layers
from scene_distill.viewer.access import Access
from scene_distill.viewer.browser_splats import PackedSplats
from scene_distill.viewer.drawing import DrawingQueue, Superseded
from scene_distill.viewer.encoding import encoded, framed
from scene_distill.viewer.flight import Film, cameras_along
from scene_distill.viewer.pages import POLICY, Page, page, sentence
from scene_distill.viewer.picking import pick
from scene_distill.viewer.protocol import (
    LARGEST_MESSAGE,
    CancelRequest,
    PathRequest,
    PickRequest,
    RenderRequest,
    SteerRequest,
    number_of,
    parse,
)
from scene_distill.viewer.sessions import Session

POLL_S = 1.0
LARGEST_FRAME = 4 * LARGEST_MESSAGE
"""Bytes above which a websocket message is not even read: the connection is closed (1009)."""

MOST_BROWSERS = 16

HISTORY_EVERY_S = 4.0

FINE_QUALITY = 85
"""JPEG quality from which a picture is not a draft."""


@dataclass(eq=False)
class Browser:
    """One connected browser."""

    socket: ServerConnection
    number: int
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    film: asyncio.Task[None] | None = None


class ViewerServer:
    """Serves one session to any number of browsers; use `running`."""

    def __init__(self, session: Session, access: Access, films_folder: Path) -> None:
        self.session, self._access, self._films_folder = session, access, films_folder
        self._drawing = DrawingQueue()
        self._watching = ThreadPoolExecutor(1, thread_name_prefix="watching")
        self._browsers: set[Browser] = set()
        self._numbers = itertools.count(1)
        self._films: list[Path] = []
        self._packed = PackedSplats()

    @asynccontextmanager
    async def running(self, host: str, port: int) -> AsyncIterator[Server]:
        """The listening server inside the ``async with``. Raises `UserError` when the port cannot be had."""
        logging.getLogger("websockets").setLevel(logging.CRITICAL)
        try:
            server = await serve(
                self._browser, host, port, process_request=self._http, max_size=LARGEST_FRAME, compression=None,
                ping_interval=20, ping_timeout=60, server_header=None,
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --port") from error
        tasks = [asyncio.create_task(self._drawing.run()), asyncio.create_task(self._poll())]
        try:
            yield server
        finally:
            for task in [*tasks, *(task for browser in self._browsers for task in browser.tasks)]:
                task.cancel()
            server.close()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(server.wait_closed(), 3)
            self._drawing.close()
            self._watching.shutdown(wait=False, cancel_futures=True)

    # HTTP

    async def _http(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """A page; None where the request is the websocket's."""
        headers = request.headers
        refusal = self._access.refusal(
            request.path, _first(headers, "Host"), headers.get("Origin"), _first(headers, "Cookie")
        )
        if refusal is not None:
            return _response(sentence(403, refusal))
        if request.path.split("?")[0] == "/ws":
            if len(self._browsers) >= MOST_BROWSERS:
                return _response(sentence(503, f"{MOST_BROWSERS} browsers are connected already"))
            return None
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(None, page, request.path, self.session, self._films, self._packed)
        except Exception:
            found = sentence(500, "the viewer could not answer this")
        response = _response(found)
        if self._access.given(request.path):
            response.headers["Set-Cookie"] = self._access.cookie()
        return response

    # Browsers

    async def _browser(self, socket: ServerConnection) -> None:
        browser = Browser(socket, next(self._numbers))
        self._browsers.add(browser)
        try:
            await self._send(browser, {"type": "hello"} | await self._watch(self.session.describe))
            await self._send(browser, {"type": "status"} | await self._watch(self.session.status))
            await self._send(browser, {"type": "history"} | await self._watch(self.session.history))
            async for message in socket:
                await self._take(browser, message)
        except websockets.ConnectionClosed:
            pass
        finally:
            self._browsers.discard(browser)
            for task in browser.tasks:
                task.cancel()

    async def _take(self, browser: Browser, message: str | bytes) -> None:
        try:
            request = parse(message)
        except UserError as error:
            await self._send(browser, {"type": "refused", "why": str(error), "id": number_of(message)})
            return
        if isinstance(request, CancelRequest):
            if browser.film is not None:
                browser.film.cancel()
            return
        if isinstance(request, PathRequest) and browser.film is not None and not browser.film.done():
            await self._send(browser, {"type": "refused", "why": "a film is being made; wait for it or cancel it"})
            return
        task = asyncio.create_task(self._answer(browser, request))
        browser.tasks.add(task)
        task.add_done_callback(browser.tasks.discard)
        if isinstance(request, PathRequest):
            browser.film = task

    async def _answer(self, browser: Browser, request: Any) -> None:
        """Meet a request, whatever happens: a fault becomes a sentence."""
        number = getattr(request, "number", None)
        try:
            if isinstance(request, RenderRequest):
                kind = "picture" if request.quality else "screenshot"
                await self._send(browser, await self._drawing.do((browser, kind), lambda: self._drawn(request)))
            elif isinstance(request, PickRequest):
                found = await self._drawing.do((browser, "pick"), lambda: self._picked(request))
                await self._send(browser, {"type": "picked", "id": number, "purpose": request.purpose} | found)
            elif isinstance(request, PathRequest):
                await self._film(browser, request)
            elif isinstance(request, SteerRequest):
                said = await self._watch(lambda: self.session.steer(request.command))
                await self._send(browser, {"type": "said", "text": said})
        except Superseded:
            await self._send(browser, {"type": "superseded", "id": number})
        except websockets.ConnectionClosed:
            pass
        except UserError as error:
            await self._send(browser, {"type": "refused", "why": str(error), "id": number})
        except Exception as error:
            logging.getLogger("scene_distill.viewer").exception("a request failed")
            why = f"the viewer failed to answer ({type(error).__name__}); its terminal says more"
            await self._send(browser, {"type": "refused", "why": why, "id": number})

    async def _send(self, browser: Browser, message: dict[str, Any] | bytes) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            await browser.socket.send(message if isinstance(message, bytes) else json.dumps(message))

    # Drawing (on the drawing thread)

    def _drawn(self, request: RenderRequest) -> bytes:
        started = time.perf_counter()
        pictures, camera, frame = [], request.camera, None
        if layers.OF_A_PHOTO & set(request.layers):
            camera, frame = self._photo_camera(request.camera)
        for name in request.layers:
            pictures.append(layers.draw(name, self._looked(camera, request, frame)))
        drawn = time.perf_counter()
        parts = [encoded(picture.image, request.quality) for picture in pictures]
        header = {
            "id": request.number, "layers": list(request.layers), "legends": [p.legend for p in pictures],
            "camera": plain_camera(camera), "frame": frame, "version": self.session.version,
            "format": "jpeg" if request.quality else "png",
            "draw_ms": round(1000 * (drawn - started), 2),
            "encode_ms": round(1000 * (time.perf_counter() - drawn), 2),
        }  # fmt: skip
        return framed(header, parts)

    def _photo_camera(self, camera: Camera) -> tuple[Camera, int]:
        frames = self.session.frames
        if not frames or self.session.images is None:
            raise UserError("the photos of this scene are not here")
        index = layers.nearest_frame(frames, camera)
        return layers.photo_camera(frames[index], camera.width), index

    def _looked(self, camera: Camera, request: RenderRequest | PathRequest, frame: int | None) -> layers.Looked:
        looking, photo = self.session.looking, None
        if frame is not None and self.session.images is not None:
            photo = layers.photo_for(self.session.images, self.session.frames[frame], camera)
        fine = not isinstance(request, RenderRequest) or request.quality == 0 or request.quality >= FINE_QUALITY
        look = replace(request.look, fine=fine)
        return layers.Looked(looking.scene, looking.teacher, camera, request.selection, look, photo)

    def _picked(self, request: PickRequest) -> dict[str, Any]:
        looking = self.session.looking
        found = pick(looking.scene, request.camera, request.selection, request.x, request.y, looking.steps)
        return found.to_dict()

    # Films

    async def _film(self, browser: Browser, request: PathRequest) -> None:
        """Draw a path picture by picture, in turn with what browsers ask for meanwhile."""
        if request.layer in layers.OF_A_PHOTO:
            raise UserError("a film cannot show photos; choose another layer")
        count = max(2, round(request.seconds * request.frames_per_second))
        path = _free_name(self._films_folder)
        size = (request.keyframes[0].width, request.keyframes[0].height)
        film = Film(path, size, request.frames_per_second)
        ended = film.abandon
        try:
            for done, camera in enumerate(cameras_along(request.keyframes, count), 1):

                def drawn(camera: Camera = camera) -> None:
                    film.add(layers.draw(request.layer, self._looked(camera, request, None)).image)

                await self._drawing.do((browser, "film"), drawn)
                await self._send(browser, {"type": "film", "done": done, "of": count})
            ended = film.finish
        finally:
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, ended))
        self._films.append(path)
        number = len(self._films) - 1
        await self._send(browser, {"type": "film", "done": count, "of": count, "number": number, "path": str(path)})

    # News

    async def _watch(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._watching, work)

    async def _poll(self) -> None:
        """Look for news while somebody watches, and tell everybody."""
        told_history = 0.0
        while True:
            await asyncio.sleep(POLL_S)
            if not self._browsers:
                continue
            version = self.session.version
            try:
                await self._watch(self.session.poll)
            except UserError as error:
                await self._tell({"type": "refused", "why": str(error)})
                continue
            except Exception:
                logging.getLogger("scene_distill.viewer").exception("looking for news failed")
                continue
            if self.session.version != version:
                await self._tell({"type": "hello"} | await self._watch(self.session.describe))
            await self._tell({"type": "status"} | await self._watch(self.session.status))
            if time.monotonic() - told_history > HISTORY_EVERY_S:
                told_history = time.monotonic()
                await self._tell({"type": "history"} | await self._watch(self.session.history))

    async def _tell(self, message: dict[str, Any]) -> None:
        for browser in list(self._browsers):
            await self._send(browser, message)


def plain_camera(camera: Camera) -> dict[str, Any]:
    """A camera for JSON: pose in row order, intrinsics in pixels, size."""
    return {
        "pose": camera.cam_from_world.ravel().tolist(), "fx": camera.fx, "fy": camera.fy, "cx": camera.cx,
        "cy": camera.cy, "width": camera.width, "height": camera.height,
    }  # fmt: skip


def _first(headers: Headers, name: str) -> str:
    values = headers.get_all(name)
    return values[0] if values else ""


def _response(found: Page) -> Response:
    headers = Headers({
        "Content-Type": found.kind, "Content-Length": str(len(found.body)), "Connection": "close",
        "Cache-Control": "no-store", "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    })  # fmt: skip
    for name, value in found.headers.items():
        headers.pop(name, None)
        headers[name] = value
    return Response(found.status, http.HTTPStatus(found.status).phrase, headers, found.body)


def _free_name(folder: Path) -> Path:
    numbers = itertools.count(1)
    return next(path for number in numbers if not (path := folder / f"path-{number:03d}.mp4").exists())
