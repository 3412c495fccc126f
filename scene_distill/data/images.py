"""Photos as training wants them: resized once, kept in memory under a budget, decoded ahead by one thread."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from types import TracebackType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError, brief
from scene_distill.data.photo_files import UNREADABLE
from scene_distill.data.scene import Frame


def read_photo(frame: Frame, width: int | None = None) -> Tensor:
    """The photo of ``frame`` as uint8 [H, W, 3] RGB, at its own size or ``width`` pixels wide.

    The size is exactly ``frame.camera.resized(width)``'s. Shrinking averages areas (a box filter for whole factors, an
    antialiasing Hamming filter otherwise); a JPEG is first decoded at 1/2, 1/4 or 1/8 when that still leaves twice the
    asked size. Transparent pixels are composited on black. Pixels are taken as stored: an EXIF orientation is not
    applied, because camera models (COLMAP's too) refer to the stored grid. Raises `UserError` when the file cannot be
    decoded or does not have the camera's size.
    """
    camera = frame.camera
    target = camera if width is None else camera.resized(width)
    try:
        with Image.open(frame.path) as image:
            if image.size != (camera.width, camera.height):
                raise UserError(
                    f"{frame.path} is {image.width}x{image.height} but its camera says {camera.width}x{camera.height}; "
                    "restore the photo or load the scene again"
                )
            image.draft("RGB", (2 * target.width, 2 * target.height))
            rgb = on_black(image)
    except UNREADABLE as error:
        raise UserError(
            f"{frame.path} cannot be decoded ({brief(error)}); restore it or take it out of the scene"
        ) from error
    if rgb.size != (target.width, target.height):
        rgb = rgb.resize((target.width, target.height), _filter(rgb.size, target))
    return torch.from_numpy(np.array(rgb, dtype=np.uint8))


class ImageCache:
    """Photos of ``frames``, ``width`` pixels wide, at most ``budget_bytes`` of them: least recently used go.

    A photo larger than the whole budget is decoded anew each time and never kept. Beside the budget, at most one photo
    per asking thread and one in the prefetch thread is being decoded. Safe to ask from several threads.
    """

    def __init__(self, frames: Iterable[Frame], width: int, budget_bytes: int) -> None:
        self._frames = {frame.name: frame for frame in frames}
        self._width = width
        self.budget_bytes = max(0, budget_bytes)
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self._decoding: dict[str, threading.Event] = {}
        self._queue: deque[Frame] = deque()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._closed = False

    def limit(self, budget_bytes: int) -> None:
        """Change the budget; photos that no longer fit are dropped, least recently used first."""
        with self._lock:
            self.budget_bytes = max(0, budget_bytes)
            while self._bytes > self.budget_bytes:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.numel()

    @property
    def kept_bytes(self) -> int:
        """Bytes of the photos held now, never above the budget."""
        return self._bytes

    def camera(self, frame: Frame) -> Camera:
        """The camera that fits what `get` returns for ``frame``."""
        return frame.camera.resized(self._width)

    def get(self, frame: Frame) -> Tensor:
        """The photo, uint8 [H, W, 3] RGB of ``camera(frame)``'s size; shared, so do not write into it.

        Raises `UserError` when the photo cannot be decoded and KeyError when ``frame`` is not one of this cache's.
        """
        name = self._frames[frame.name].name
        while True:
            with self._lock:
                if name in self._kept:
                    self._kept.move_to_end(name)
                    return self._kept[name]
                busy = self._decoding.get(name)
                if busy is None:
                    self._decoding[name] = threading.Event()
                    break
            busy.wait()
        return self._decode(frame)

    def prefetch(self, frames: Sequence[Frame]) -> None:
        """Decode ``frames`` in the background, in this order, replacing what was queued before.

        Only as many as fit in the budget together are queued. A photo that fails is left for `get` to report.
        """
        with self._lock:
            self._queue.clear()
            room = self.budget_bytes
            for frame in frames:
                room -= self._size(frame)
                if room < 0:
                    break
                self._queue.append(self._frames[frame.name])
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._prefetch_forever, name="photo-prefetch", daemon=True)
                self._thread.start()
            self._work.notify()

    def close(self) -> None:
        """Stop the prefetch thread and let go of every photo."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            self._work.notify()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def __enter__(self) -> ImageCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _size(self, frame: Frame) -> int:
        camera = self.camera(frame)
        return 3 * camera.width * camera.height

    def _decode(self, frame: Frame) -> Tensor:
        """Decode a frame this thread has claimed in ``_decoding``, keep it if it fits, and wake who waits for it."""
        try:
            photo = read_photo(frame, self._width)
            with self._lock:
                self._keep(frame.name, photo)
            return photo
        finally:
            with self._lock:
                self._decoding.pop(frame.name).set()

    def _keep(self, name: str, photo: Tensor) -> None:
        size = photo.numel()
        if size > self.budget_bytes:
            return
        while self._bytes + size > self.budget_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.numel()
        self._kept[name] = photo
        self._bytes += size

    def _prefetch_forever(self) -> None:
        while True:
            with self._lock:
                while not self._queue and not self._closed:
                    self._work.wait()
                if self._closed:
                    return
                frame = self._queue.popleft()
                if frame.name in self._kept:
                    self._kept.move_to_end(frame.name)
                    continue
                if frame.name in self._decoding:
                    continue
                self._decoding[frame.name] = threading.Event()
            try:
                self._decode(frame)
            except UserError:
                continue  # get() meets the same fault in the thread that needs the photo, and tells it there


def on_black(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB; transparency composited on black."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB")
    return image.convert("RGB")


def _filter(size: tuple[int, int], target: Camera) -> Image.Resampling:
    if size[0] < target.width or size[1] < target.height:
        return Image.Resampling.BILINEAR
    whole = size[0] % target.width == 0 and size[1] % target.height == 0
    return Image.Resampling.BOX if whole else Image.Resampling.HAMMING
