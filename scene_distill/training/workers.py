"""The processes of a training run, whoever starts them: torchrun, the command line, or nerfstudio's trainer."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from scene_distill.blocks.launch import joined
from scene_distill.blocks.workers import Workers
from scene_distill.core.configs import save_config
from scene_distill.core.console import console
from scene_distill.core.errors import UserError


class SharedRun(Protocol):
    """A flat frozen config of a run that processes may share."""

    @property
    def workers(self) -> int:
        """Processes on this machine."""
        ...

    @property
    def worker_timeout(self) -> float:
        """Seconds that one waits for another."""
        ...


@contextmanager
def workers_of(method_name: str, config: SharedRun, command_words: Sequence[str] = ()) -> Iterator[Workers]:
    """The workers of a run with this process among them; ``config.workers`` - 1 others are started when torchrun has
    not. Only worker 0 prints; what goes wrong on another is told with its number. A dry run needs no other.

    ``command_words``: how others are started, before --config FILE; default: train METHOD.
    """
    words = command_words or ("train", method_name)
    alone = bool(getattr(config, "dry_run", False))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"

        def command() -> list[str]:
            save_config(config, path, method_name)
            return [sys.executable, "-m", "scene_distill", *words, "--config", str(path)]

        with joined(1 if alone else config.workers, command, config.worker_timeout) as workers:
            if workers.rank == 0:
                yield workers
                return
            console.quiet = True
            try:
                yield workers
            except UserError as error:
                raise UserError(f"worker {workers.rank}: {error}") from error
