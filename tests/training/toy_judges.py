"""A judge with known answers: the nearest of rendered pictures says what a picture shows."""

from __future__ import annotations

import numpy as np
import torch

from scene_distill.core.cameras import Camera
from scene_distill.data.captioned_shapes import COLOR_NAMES, SHAPE_NAMES, VIEWS, Toy
from scene_distill.data.captioned_shapes_pictures import NATURAL
from scene_distill.data.captioned_shapes_renderer import orbit_camera
from scene_distill.training.object_views import Orbit, object_views
from scene_distill.training.toy_objects import toy_object

ORBIT = Orbit(views=12, size=32)


class NearestJudge:
    """Logits of pictures by their distance to rendered toys."""

    def __init__(self, toys: list[Toy], orbit: Orbit = ORBIT) -> None:
        self.images, rows = [], []
        for toy in toys:
            self.images.append(object_views(toy_object(toy, "rig"), orbit).images)
            part = NATURAL if toy.part_color is None else COLOR_NAMES.index(toy.part_color)
            first = (COLOR_NAMES.index(toy.color), SHAPE_NAMES.index(toy.shape), part)
            rows += [(*first, VIEWS.index(word)) for word in orbit.words]
        self.images = torch.cat(self.images)
        self.labels = torch.tensor(rows)
        self.captions = [
            toy.caption(word) for toy in toys for word in orbit.words
        ]  # fmt: skip

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        likely = -torch.cdist(images.flatten(1), self.images.flatten(1)).square()
        answers = {"color": len(COLOR_NAMES), "shape": len(SHAPE_NAMES), "part_color": NATURAL + 1, "view": len(VIEWS)}
        logits = {}
        for column, (name, count) in enumerate(answers.items()):
            logits[name] = torch.full((len(images), count), -1e4)
            for answer in self.labels[:, column].unique().tolist():
                logits[name][:, answer] = likely[:, self.labels[:, column] == answer].amax(1)
        return logits


class TwoFaced:
    """An object that shows its front also from behind: the Janus problem itself."""

    def __init__(self, draw) -> None:
        self.draw = draw

    def __call__(self, camera: Camera):
        x, y, z = camera.center
        azimuth = np.degrees(np.arctan2(y, x))
        if abs(azimuth) > 90:
            azimuth -= 180
        distance = float(np.linalg.norm(camera.center))
        field = 2 * np.degrees(np.arctan(0.5 * camera.width / camera.fx))
        return self.draw(orbit_camera(camera.width, azimuth, np.degrees(np.arcsin(z / distance)), distance, field))
