"""Where a unit's state lives between its visits: in RAM while the budget allows, always on disk.

A state is a flat dict of tensors. Every save writes a new file (never over the old one) and returns its entry with a
checksum, so the set of entries named by the last committed manifest is a whole checkpoint: the store is the checkpoint.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load, save_file
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically

State = dict[str, Tensor]


@dataclass(frozen=True)
class Entry:
    """A saved state: file name inside the store's folder, and the blake2b checksum of its bytes."""

    file: str
    checksum: str

    def to_dict(self) -> dict[str, str]:
        """Plain values for the manifest."""
        return asdict(self)


def state_bytes(state: State) -> int:
    """Bytes of all tensors of a state."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


class UnitStore:
    """States on disk with a least-recently-used tier in RAM of at most ``ram_bytes``."""

    def __init__(self, folder: Path, ram_bytes: int = 0) -> None:
        self.folder = folder
        self._ram_bytes = ram_bytes
        self._ram: OrderedDict[str, State] = OrderedDict()

    def save(self, name: str, state: State) -> Entry:
        """Write a state under a new name, atomically; the caller gives up the tensors (they may stay cached)."""
        path = self.folder / f"{name}.safetensors"
        cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
        write_atomically(path, lambda temporary: save_file(cpu, temporary))
        entry = Entry(path.name, _checksum(path.read_bytes()))
        self._keep(entry.file, cpu)
        return entry

    def load(self, entry: Entry) -> State:
        """The state of an entry; raises `UserError` when its file is missing or its checksum differs."""
        if entry.file in self._ram:
            return self._ram.pop(entry.file)
        path = self.folder / entry.file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the saved state {path}: {error.strerror}; the run cannot continue") from error
        if _checksum(data) != entry.checksum:
            raise UserError(f"the saved state {path} is damaged (checksum differs); restore it or start the run anew")
        return load(data)

    def collect(self, entries: set[str]) -> None:
        """Delete files that no committed manifest names any more."""
        if self.folder.exists():
            for path in self.folder.iterdir():
                if path.name not in entries:
                    path.unlink(missing_ok=True)
        for file in [file for file in self._ram if file not in entries]:
            del self._ram[file]

    def _keep(self, file: str, state: State) -> None:
        self._ram[file] = state
        while self._ram and sum(map(state_bytes, self._ram.values())) > self._ram_bytes:
            self._ram.popitem(last=False)


def _checksum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
