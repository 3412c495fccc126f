"""The processes of a training run, whoever starts them: torchrun, the command line, or nerfstudio's trainer."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scene_distill.blocks.launch import joined
from scene_distill.blocks.workers import Workers
from scene_distill.core.configs import RunConfig, save_config
from scene_distill.core.console import console
from scene_distill.core.errors import UserError


@contextmanager
def workers_of(method_name: str, config: RunConfig) -> Iterator[Workers]:
    """The workers of a run with this process among them; ``config.workers`` - 1 others are started when torchrun has
    not. Only worker 0 prints; what goes wrong on another is told with its number. A dry run needs no other.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"

        def command() -> list[str]:
            save_config(config, path, method_name)
            return [sys.executable, "-m", "scene_distill", "train", method_name, "--config", str(path)]

        with joined(1 if config.dry_run else config.workers, command, config.worker_timeout) as workers:
            if workers.rank == 0:
                yield workers
                return
            console.quiet = True
            try:
                yield workers
            except UserError as error:
                raise UserError(f"worker {workers.rank}: {error}") from error
