"""Files that are either whole or not there: write beside, flush, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scene_distill.core.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write(temporary)`` and rename the result to ``path``; a kill or a full disk leaves the old file as it
    was. The file has the permissions of any new file, whatever ``write`` gave it (safetensors: the owner's alone)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        usual = temporary.stat().st_mode
        temporary.unlink()
        write(temporary)
        if temporary.is_file():
            temporary.chmod(usual)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_error(path: Path, error: OSError) -> UserError:
    """The sentence for a file or folder that could not be written: what is wrong, and what helps against that."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"cannot write {path}: {error.strerror}; free some space or choose another folder")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        file = next((one for one in [*reversed(path.parents), path] if os.path.isfile(one)), path)
        return UserError(f"cannot write {path}: {file} exists and is no folder; choose another folder")
    if error.errno == errno.EISDIR:
        return UserError(f"cannot write {path}: a folder of that name exists; choose another name")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"cannot write {path}: {error.strerror}; choose a folder that you may write to")
    if error.errno == errno.ENOENT:
        return UserError(f"cannot write {path}: there is no such folder and none can be made; choose another folder")
    return UserError(f"cannot write {path}: {error.strerror or error}; choose another folder")


def check_writable(path: Path) -> None:
    """Raise `UserError` now where a file could not be written to ``path`` after long work; nothing stays behind."""
    if os.path.isdir(path):
        raise write_error(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    check_folder_writable(path.parent, path)


def check_folder_writable(folder: Path, told: Path | None = None) -> None:
    """Raise `UserError` where no file can be made in ``folder``, there or yet to be made; it names ``told`` (default:
    the folder). A file is made in it and removed, and so are the folders that were missing."""
    made: list[Path] = []
    try:
        missing = [one for one in [folder, *folder.parents] if not one.exists()]
        for one in reversed(missing):
            one.mkdir()
            made.append(one)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise write_error(told or folder, error) from error
    finally:
        for one in reversed(made):
            with contextlib.suppress(OSError):
                one.rmdir()


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomically(path, lambda temporary: _dump(temporary, value))


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file; `UserError` when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); it may be damaged") from error
