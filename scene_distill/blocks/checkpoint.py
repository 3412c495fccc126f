"""The committed checkpoint: which files belong together, and where in the schedule they stand.

`checkpoint.json` names the state of every unit and of the shared state after a round; one atomic rename makes a round
count. `checkpoint-previous.json` and its files stay for one round more, so that a run whose newest file was damaged on
disk can go back a round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scene_distill.blocks.splitting import Split
from scene_distill.blocks.store import DamagedState, Entry, UnitStore
from scene_distill.core.errors import UserError
from scene_distill.core.files import read_json, write_json

MANIFEST = "checkpoint.json"
PREVIOUS = "checkpoint-previous.json"


@dataclass(frozen=True)
class Checkpoint:
    """What is committed before ``next_round``: an entry per unit that was ever visited, the shared state's, and the
    splits of units in the order they were made."""

    schedule: dict[str, int]
    next_round: int = 0
    seconds: float = 0.0
    shared: Entry | None = None
    units: dict[int, Entry] = field(default_factory=dict)
    splits: tuple[Split, ...] = ()

    def files(self) -> set[str]:
        """Names of the files it consists of."""
        shared = {self.shared.file} if self.shared else set()
        return shared | {entry.file for entry in self.units.values()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "next_round": self.next_round,
            "seconds": self.seconds,
            "schedule": self.schedule,
            "shared": self.shared.to_dict() if self.shared else None,
            "splits": [split.to_dict() for split in self.splits],
            "units": {str(unit): entry.to_dict() for unit, entry in sorted(self.units.items())},
        }

    @staticmethod
    def from_file(path: Path) -> Checkpoint:
        """The checkpoint that a manifest describes; raises `UserError` when the manifest is damaged."""
        values = read_json(path)
        try:
            units = {int(unit): Entry(**entry) for unit, entry in values["units"].items()}
            return Checkpoint(
                dict(values["schedule"]), int(values["next_round"]), float(values["seconds"]),
                Entry(**values["shared"]), units, tuple(Split(**split) for split in values.get("splits", ())),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); {_way_back(path.parent)}") from error


class CheckpointFolder:
    """The manifests in a folder, and the store whose files they name. Only worker 0 has one."""

    def __init__(self, folder: Path, store: UnitStore) -> None:
        self.folder, self._store = folder, store

    def read(self, schedule: dict[str, int]) -> Checkpoint | None:
        """The last commit, None when there is none; files that no manifest names are deleted.

        Raises `UserError` when the manifest is damaged, of another schedule, or names a file that is missing or cut.
        """
        path = self.folder / MANIFEST
        if not path.exists():
            return None
        current = Checkpoint.from_file(path)
        if current.schedule != schedule:
            raise UserError(f"{path} belongs to another schedule; resume with the same blocks, lanes and iterations")
        for entry in [current.shared, *current.units.values()]:
            if entry is not None:
                self._check_size(entry, current)
        self._store.remove(self._store.files() - current.files() - self._previous_files())
        return current

    def commit(self, new: Checkpoint, old: Checkpoint) -> None:
        """Make ``new`` the last commit and ``old`` the one before; delete what neither needs."""
        obsolete = self._previous_files() - old.files() - new.files()
        if old.shared is not None:
            write_json(self.folder / PREVIOUS, old.to_dict())
        write_json(self.folder / MANIFEST, new.to_dict())
        self._store.remove(obsolete)

    def explain(self, damaged: DamagedState) -> UserError:
        """The sentence for a damaged state, with what to do about it."""
        return UserError(f"{damaged}; {_way_back(self.folder, damaged.file)}")

    def _check_size(self, entry: Entry, checkpoint: Checkpoint) -> None:
        path = self._store.folder / entry.file
        found = path.stat().st_size if path.exists() else None
        if found is None:
            raise self.explain(DamagedState(entry.file, f"the saved state {path} is missing"))
        if found != entry.bytes:
            told = f"the saved state {path} has {found} bytes and should have {entry.bytes}"
            raise self.explain(DamagedState(entry.file, told))

    def _previous_files(self) -> set[str]:
        path = self.folder / PREVIOUS
        return Checkpoint.from_file(path).files() if path.exists() else set()


def _way_back(folder: Path, file: str | None = None) -> str:
    """What to do about a damaged manifest or state file."""
    previous = folder / PREVIOUS
    if previous.exists() and (file is None or file not in Checkpoint.from_file(previous).files()):
        return f"to go back one round, rename {previous} to {MANIFEST} and start again with --resume"
    return "restore it from a copy, or start the run anew in another folder"
