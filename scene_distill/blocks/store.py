"""Where a unit's state lives between its visits: device, then RAM while the budget allows, always disk.

A state is a flat dict of tensors. Every save writes a new file (never over one that a manifest names) and returns its
entry with size and checksum, so the entries named by the last committed manifest are a whole checkpoint: the store is
the checkpoint. Files are written and fetched ahead by a background thread; a state that is asked for while its file is
being written is copied, so a unit that stays, one that left and one that came back are equal bit for bit.

Work: a state that leaves costs the training thread one copy off the device (none on a CPU); packing, checksum
(XXH3, at the speed of memory) and writing happen beside training.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically

State = dict[str, Tensor]


@dataclass(frozen=True)
class Entry:
    """A saved state: file name inside the store's folder, size in bytes, and XXH3 checksum of the bytes."""

    file: str
    bytes: int
    checksum: str

    def to_dict(self) -> dict[str, str | int]:
        """Plain values for the manifest."""
        return asdict(self)


class DamagedState(UserError):
    """A saved state whose file is missing, cut short or changed."""

    def __init__(self, file: str, sentence: str) -> None:
        super().__init__(sentence)
        self.file = file


def state_bytes(state: State) -> int:
    """Bytes of all tensors of a state."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def pack(state: State) -> bytes:
    """A state as the bytes of its file."""
    return save(state)


def unpack(data: bytes) -> State:
    """The state in the bytes of a file."""
    return load(data)


@dataclass
class _Held:
    """A state in RAM. ``written``: its file is whole. ``wanted``: fetched ahead for the next round."""

    state: State
    bytes: int
    written: bool = False
    wanted: bool = False


class UnitStore:
    """States on disk, with a tier in RAM: what is being written, what was fetched ahead, and under a budget
    also what was used last.

    ``ram_bytes`` bounds the tier; without a number it holds only what is being written or was fetched ahead. What is
    being written cannot be dropped: see `over_budget`. Safe to use from the training thread and one background thread.
    """

    def __init__(self, folder: Path, ram_bytes: int | None = None) -> None:
        self.folder = folder
        self._ram_bytes = ram_bytes
        self._ram: OrderedDict[str, _Held] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def held_bytes(self) -> int:
        """Bytes of the states in RAM."""
        with self._lock:
            return sum(held.bytes for held in self._ram.values())

    @property
    def over_budget(self) -> bool:
        """Whether the tier exceeds its budget with states that are still being written."""
        return self._ram_bytes is not None and self.held_bytes > self._ram_bytes

    def keep(self, file: str, state: State) -> None:
        """Take a state off its device, to be written by `write`; the caller gives up the tensors."""
        state = off_device(state)
        with self._lock:
            self._ram[file] = _Held(state, state_bytes(state))
            self._trim()

    def write(self, file: str) -> Entry:
        """Write a kept state, atomically. Raises `UserError` when the disk is full."""
        entry = self.write_bytes(file, self._packed(file))
        self._set_written(file)
        return entry

    def packed(self, file: str) -> bytes:
        """A kept state as the bytes of its file, for a worker that writes it in place of this one."""
        data = self._packed(file)
        self._set_written(file)
        return data

    def save(self, file: str, state: State) -> Entry:
        """Keep and write."""
        self.keep(file, state)
        return self.write(file)

    def write_bytes(self, file: str, data: bytes) -> Entry:
        """Write a packed state, atomically."""
        path = self.folder / file
        write_atomically(path, lambda temporary: _write(temporary, data))
        return Entry(file, len(data), checksum(data))

    def hold(self, file: str, state: State) -> None:
        """Keep a state that another worker has on disk until it is taken."""
        with self._lock:
            self._ram[file] = _Held(state, state_bytes(state), written=True, wanted=True)

    def holds(self, file: str) -> bool:
        """Whether the state is in RAM."""
        with self._lock:
            return file in self._ram

    def take(self, file: str) -> State | None:
        """The state where it is in RAM: itself, which leaves RAM, or a copy while its file is being written."""
        with self._lock:
            held = self._ram.get(file)
            if held is None:
                return None
            if held.written:
                return self._ram.pop(file).state
            return {name: tensor.clone() for name, tensor in held.state.items()}

    def look_at(self, file: str) -> State | None:
        """The state where it is in RAM, which it does not leave; not to be changed."""
        with self._lock:
            held = self._ram.get(file)
            return None if held is None else held.state

    def release(self) -> None:
        """Nobody waits for what was fetched ahead or sent any more."""
        with self._lock:
            for held in self._ram.values():
                held.wanted = False
            self._trim()

    def load(self, entry: Entry) -> State:
        """The state of an entry, from RAM or disk; raises `DamagedState` when its file is missing or was changed."""
        state = self.take(entry.file)
        return unpack(self.read_bytes(entry)) if state is None else state

    def read_bytes(self, entry: Entry) -> bytes:
        """The bytes of an entry's file, which are what was written; raises `DamagedState` otherwise."""
        path = self.folder / entry.file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DamagedState(entry.file, f"cannot read the saved state {path}: {error.strerror}") from error
        if len(data) != entry.bytes:
            raise DamagedState(
                entry.file, f"the saved state {path} has {len(data)} bytes and should have {entry.bytes}"
            )
        if checksum(data) != entry.checksum:
            raise DamagedState(entry.file, f"the saved state {path} is damaged (its checksum differs)")
        return data

    def read_some(self, entry: Entry, names: Sequence[str]) -> State:
        """Some tensors of an entry's file as they are there, without a look at the checksum of the whole; raises
        `DamagedState` where they cannot be read."""
        try:
            with safe_open(self.folder / entry.file, framework="pt") as file:
                return {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError):
            state = unpack(self.read_bytes(entry))  # tells what is wrong
            return {name: state[name] for name in names}

    def drop(self, file: str) -> None:
        """Nobody will ask for a state soon: let it leave RAM when its file is whole."""
        with self._lock:
            held = self._ram.get(file)
            if held is not None and held.written:
                del self._ram[file]

    def shrink(self, by_bytes: int) -> None:
        """Lower the budget, and drop what no longer fits."""
        with self._lock:
            if self._ram_bytes is not None:
                self._ram_bytes = max(self._ram_bytes - by_bytes, 0)
                self._trim()

    def empty(self) -> None:
        """Drop every state whose file is whole."""
        with self._lock:
            self._ram = OrderedDict((file, held) for file, held in self._ram.items() if not held.written)

    def fetch(self, entry: Entry) -> None:
        """Read an entry ahead of its use, if the budget has room for it. A damaged file is left for `load` to tell."""
        with self._lock:
            if entry.file in self._ram:
                self._ram[entry.file].wanted = True
                return
            fixed = sum(held.bytes for held in self._ram.values() if held.wanted or not held.written)
            if self._ram_bytes is not None and fixed + entry.bytes > self._ram_bytes:
                return
        try:
            state = unpack(self.read_bytes(entry))
        except DamagedState:
            return
        if torch.cuda.is_available():
            state = {name: tensor.pin_memory() for name, tensor in state.items()}
        with self._lock:
            self._ram[entry.file] = _Held(state, entry.bytes, written=True, wanted=True)
            self._trim()

    def remove(self, files: set[str]) -> None:
        """Delete files that no manifest names any more."""
        for file in files:
            (self.folder / file).unlink(missing_ok=True)
            with self._lock:
                if file in self._ram and self._ram[file].written:
                    del self._ram[file]

    def files(self) -> set[str]:
        """Names of everything in the folder."""
        return {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()

    def _packed(self, file: str) -> bytes:
        with self._lock:
            held = self._ram[file]
        return pack(held.state)

    def _set_written(self, file: str) -> None:
        with self._lock:
            self._ram[file].written = True
            self._trim()

    def _trim(self) -> None:
        """Drop written states nobody waits for, least recently used first, until the tier fits its budget."""
        for file in [file for file, held in self._ram.items() if held.written and not held.wanted]:
            if self._ram_bytes is not None and self.held_bytes <= self._ram_bytes:
                return
            del self._ram[file]


def off_device(state: State) -> State:
    """The state in RAM; from a GPU into pinned memory, in one batch of copies."""
    ram: State = {}
    for name, tensor in state.items():
        if tensor.is_cuda:
            ram[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            ram[name].copy_(tensor.detach(), non_blocking=True)
        else:
            ram[name] = tensor.detach().contiguous()
    if any(tensor.is_cuda for tensor in state.values()):
        torch.cuda.synchronize()
    return ram


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def checksum(data: bytes) -> str:
    """XXH3 of 128 bits, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(data)
