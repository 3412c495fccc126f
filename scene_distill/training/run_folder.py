"""The folder of a run: config.yaml, log.jsonl, checkpoint/, model.safetensors, metrics.json, renders/."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from scene_distill.core.configs import ConfigT, changed_fields, from_plain, read_yaml, save_config, with_absolute_paths
from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically


class Resumable(Protocol):
    """A flat frozen config of a run that may be continued."""

    @property
    def resume(self) -> bool:
        """Continue the run in the folder."""
        ...


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run and the lines of its log."""

    path: Path

    @property
    def config(self) -> Path:
        """The settings as plain YAML."""
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        """One JSON object per line: every lockstep step and every commit."""
        return self.path / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Folder of the runtime's committed state."""
        return self.path / "checkpoint"

    @property
    def model(self) -> Path:
        """The merged scene."""
        return self.path / "model.safetensors"

    @property
    def metrics(self) -> Path:
        """Evaluation on the held-out views, nerfstudio's keys and ours."""
        return self.path / "metrics.json"

    @property
    def renders(self) -> Path:
        """Folder of pictures."""
        return self.path / "renders"

    def open(self, config: Resumable, method: str) -> None:
        """Make the folder and write the config, its data as an absolute path, or check that a run to be resumed has the
        same one.

        With ``config.resume`` a folder without a run starts one (a run may be killed before it wrote anything). Raises
        `UserError` when the folder holds a run and ``config.resume`` is off, or when settings that decide what is
        trained have changed.
        """
        if self.config.exists():
            if not config.resume:
                raise UserError(
                    f"{self.path} already holds a run; add --resume to continue it or choose another --output-dir"
                )
            old = self.saved_config(type(config), method)
            changed = changed_fields(old, config)
            if changed:
                was, now = getattr(old, changed[0]), getattr(config, changed[0])
                raise UserError(
                    f"{self.path} was started with --{changed[0].replace('_', '-')} {was}, not {now}; "
                    "resume with the same settings or choose another --output-dir"
                )
            return
        stored = with_absolute_paths(config)
        write_atomically(self.config, lambda temporary: save_config(stored, temporary, method))

    def saved_config(self, kind: type[ConfigT], method: str) -> ConfigT:
        """The config the run was started with."""
        found = self.method()
        if found != method:
            raise UserError(f"{self.path} holds a {found} run, not {method}")
        return from_plain(kind, read_yaml(self.config), str(self.config))

    def method(self) -> str:
        """Name of the method that made the run; raises `UserError` when this is not a run folder."""
        if not self.path.exists():
            raise UserError(f"{self.path} does not exist; give the run folder that training printed")
        if not self.config.is_file():
            raise UserError(
                f"{self.path} is not a run folder (no config.yaml in it); give the folder that training printed"
            )
        first = self.config.read_text().split("\n", 1)[0]
        return first.partition(":")[2].strip()

    def append(self, line: dict[str, Any]) -> None:
        """Add one line to the log."""
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def rewind_log(self, next_round: int) -> None:
        """Drop lines of rounds that were not committed, and a last line cut short by a kill. What was changed from
        outside during such rounds is kept: it holds from the same round on when they are trained again."""
        if not self.log.exists():
            return
        kept = []
        for line in self.log.read_text().splitlines():
            try:
                told = json.loads(line)
                if told.get("round", -1) < next_round or "from_round" in told.get("control", {}):
                    kept.append(line)
            except ValueError:
                continue
        write_atomically(self.log, lambda temporary: _write_lines(temporary, kept))


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines))
