"""Shards: numbered things cut into files of tensors that can be made again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scene_distill.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def numbers_of(shard: int, shards: int, count: int) -> range:
    """Which of ``count`` things are in a shard; sizes differ by one at most."""
    return range(count * shard // shards, count * (shard + 1) // shards)


def read_shard_file(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """These tensors of a shard's .safetensors file; `UserError` where it is missing, damaged or lacks one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the shard {path} cannot be read ({reason}); delete it, and it is made again") from error
