"""A film of one turn around a trained object."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scene_distill.methods.text_to_3d.backgrounds import plain
from scene_distill.methods.text_to_3d.representation import TrainedObject
from scene_distill.methods.text_to_3d.views import orbit_views

FILM_VIEWS, FILM_PX, FILM_RATE = 72, 384, 24
"""Pictures of a film, their side, and pictures a second."""


def write_film(trained: TrainedObject, path: Path, told: Callable[[int], None] = lambda done: None) -> None:
    """One turn around the object as mp4."""
    from scene_distill.viewer.flight import Film

    film = Film(path, (FILM_PX, FILM_PX), FILM_RATE)
    try:
        for number, camera in enumerate(orbit_views(FILM_VIEWS, FILM_PX).cameras):
            film.add(trained.render([camera], plain()).image[0])
            told(number + 1)
    except BaseException:
        film.abandon()
        raise
    film.finish()
