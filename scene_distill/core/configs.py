"""Flat frozen dataclasses as configs: the same object makes the command line, the YAML file, the checkpoint and the
report."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
import yaml

from scene_distill.core.errors import UserError

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class RunConfig:
    """The words that every training command shares. Methods add theirs in a subclass, flat.

    The docstring of a field is its help text; lengths are in the scene's unit, times in steps.
    """

    data: Path | None = None
    """COLMAP folder, transforms.json (or its folder), or a folder of photos."""
    output_dir: Path | None = None
    """Run folder. Default: outputs/<name of the data folder>-<method>."""
    blocks: int = 8
    """Units the city is cut into (K); any number from 1."""
    lanes: int = 4
    """Blocks trained side by side in one round (L); any number from 1, independent of blocks and workers."""
    iterations: int = 1000
    """Steps per block, one view a step. Every schedule is a fraction of it."""
    image_width: int = 395
    """Width in pixels that photos are shrunk to for training and evaluation; 0 keeps the files' own."""
    test_every: int = 8
    """Every n-th photo in name order is held out; 0 holds out none."""
    test_list: Path | None = None
    """Text file with one photo name per line to hold out instead of every n-th."""
    seed: int = 0
    """Seed of every random number of the run."""
    workers: int = 1
    """Processes on this machine that share the lanes (N); any number from 1. Results do not depend on it. Leave it at 1
    under torchrun, which counts for itself and can use many machines."""
    reduction: Literal["ordered", "all-reduce"] = "ordered"
    """Sum of shared gradients: in lane order, the same bits on any number of workers; or all-reduce, for shared models
    too large to gather from every lane, equal to rounding."""
    worker_timeout: float = 600.0
    """Seconds that a worker waits for another before it gives up."""
    threads: int = 0
    """CPU threads of the native kernels; 0 takes all, shared among the workers. Results do not depend on it."""
    max_memory: str = ""
    """Memory budget of each worker, such as 8GB; empty: no limit. Images, lanes and evicted blocks obey it."""
    max_block_memory: str = ""
    """Memory of one block in training, such as 500MB; a block that outgrows it is split in two. Empty: never."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in the run folder from its last finished round."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print blocks, views, memory and time, then stop."""


HOW_TO_RUN = frozenset({"resume", "dry_run", "output_dir", "threads", "max_memory", "workers", "worker_timeout"})
"""Fields that say how to run, not what is trained: a resumed run may change them."""

READ_FROM = frozenset({"data", "test_list", "describe", "models_root", "conditioner"})
"""Fields with the paths of what a run reads: a run keeps them absolute, so that it can be opened from any folder."""


def to_plain(config: Any) -> dict[str, Any]:
    """The config as a dict of plain YAML/JSON values (paths as strings, tuples as lists)."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def from_plain(kind: type[ConfigT], values: dict[str, Any], source: str = "config") -> ConfigT:
    """A config of type ``kind`` from plain values; missing fields keep their default.

    Raises `UserError` for an unknown field or a value of the wrong type, naming the field and the source.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - fields)
    if unknown:
        raise UserError(f"{source}: unknown setting '{unknown[0]}'; known ones are listed by --help")
    checked = {name: _checked(hints[name], value, f"{source}: {name}") for name, value in values.items()}
    return kind(**checked)


def _checked(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _checked(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Annotated:
        return _checked(arguments[0], value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise UserError(f"{where} is '{value}'; choose one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} must be a list, not '{value}'")
        return tuple(_checked(arguments[0], item, where) for item in value)
    if hint is Path:
        return Path(value)
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is hint:
        return value
    raise UserError(f"{where} must be {getattr(hint, '__name__', hint)}, not '{value}'")


def load_config(kind: type[ConfigT], path: Path) -> ConfigT:
    """The config in a YAML file; raises `UserError` when it cannot be read or does not fit ``kind``."""
    return from_plain(kind, read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file (plain values only), or a `UserError`."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"cannot read the config file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings; it should be a list of 'name: value' lines")
    values.pop("method", None)
    return values


def save_config(config: Any, path: Path, method: str) -> None:
    """Write the config as plain YAML with the method's name first."""
    text = yaml.safe_dump({"method": method} | to_plain(config), sort_keys=False)
    path.write_text(text)


def changed_fields(old: Any, new: Any) -> list[str]:
    """Names of the fields that decide what is trained and differ between two configs."""
    a, b = to_plain(old), to_plain(new)
    for plain in (a, b):
        plain.update({name: str(Path(plain[name]).resolve()) for name in READ_FROM if plain.get(name) is not None})
    return [name for name in b if name not in HOW_TO_RUN and a.get(name) != b[name]]


def with_absolute_paths(config: ConfigT) -> ConfigT:
    """The config with the paths of what a run reads (`READ_FROM`) made absolute, seen from the working directory."""
    paths = {name: getattr(config, name, None) for name in READ_FROM}
    return dataclasses.replace(  # type: ignore[type-var]
        config, **{name: path.absolute() for name, path in paths.items() if isinstance(path, Path)}
    )
