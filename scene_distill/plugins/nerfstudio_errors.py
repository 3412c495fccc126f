"""How a user's mistake and Ctrl-C end a nerfstudio command: with one sentence, as in our own command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from scene_distill.core.errors import UserError


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turns a `UserError` into the exit of the process with its sentence and code 1."""
    try:
        yield
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
