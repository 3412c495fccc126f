"""Classes and semantic features that a splat .ply carries beside its splats, as extra properties of its vertices.

A class is one whole number a splat in a property `semantic`, `label` or `class` (also as `<name>_id`, `<name>_label`
and with CloudCompare's prefix `scalar_`); negative numbers mean none. Names of classes stand in a header comment
``scene_distill.classes`` followed by JSON: a list, or an object from number to name. Features are floats in properties
`f_sem_0`, `f_sem_1`, ... or `semantic_0`, `semantic_1`, ...
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from scene_distill.core.errors import UserError
from scene_distill.export.ply import read_vertex_columns, vertex_properties
from scene_distill.representations.semantics import NO_CLASS, Semantics

MOST_CLASSES = 4096
MOST_FEATURES = 512
MOST_NAME_CHARS = 60

_LABEL = re.compile(r"(?:scalar_)?(semantic|label|class)(?:_id|_label|_class)?", re.IGNORECASE)
_ORDER = ("semantic", "label", "class")
_FEATURE = re.compile(r"(f_sem|semantic)_(\d{1,4})", re.IGNORECASE)
_CLASSES = "scene_distill.classes "


def read_semantics(path: Path) -> Semantics | None:
    """What a .ply says of its splats' classes, in their order; None when it says nothing.

    Raises `UserError` when the property is there and cannot be used: numbers that are not whole, too many classes, gaps
    in the features, or a damaged list of names.
    """
    names, comments = vertex_properties(path)
    labels = sorted((_ORDER.index(found[1].lower()), name) for name in names if (found := _LABEL.fullmatch(name)))
    if labels:
        return _labels(path, labels[0][1], comments)
    features = {int(found[2]): name for name in names if (found := _FEATURE.fullmatch(name))}
    if not features:
        return None
    columns = [features.get(index, "") for index in range(len(features))]
    if not all(columns) or len(columns) > MOST_FEATURES:
        raise UserError(f"{path}: semantic features are numbered 0 to {MOST_FEATURES - 1} without a gap.")
    values = torch.from_numpy(read_vertex_columns(path, columns, np.dtype(np.float32)))
    if not torch.isfinite(values).all():
        raise UserError(f"{path}: a semantic feature is not a finite number.")
    return Semantics(f"{columns[0]} to {columns[-1]}", features=values)


def _labels(path: Path, name: str, comments: Iterable[str]) -> Semantics:
    values = read_vertex_columns(path, [name], np.dtype(np.float64))[:, 0]
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        raise UserError(f"{path}: the property '{name}' holds numbers that are not whole, so it names no classes.")
    found, places = np.unique(np.where(values < 0, NO_CLASS, values).astype(np.int64), return_inverse=True)
    if len(found) > MOST_CLASSES:
        raise UserError(f"{path}: the property '{name}' has {len(found)} classes; {MOST_CLASSES} are shown at most.")
    known = _class_names(path, comments)
    has_none = len(found) > 0 and found[0] == NO_CLASS
    names = tuple(known.get(int(number), f"class {number}") for number in found[int(has_none) :])
    labels = torch.from_numpy(places.reshape(-1).astype(np.int64) - int(has_none))
    return Semantics(name, labels=labels, names=names)


def _class_names(path: Path, comments: Iterable[str]) -> dict[int, str]:
    for comment in comments:
        if not comment.startswith(_CLASSES):
            continue
        try:
            values = json.loads(comment.removeprefix(_CLASSES))
            pairs = values.items() if isinstance(values, dict) else enumerate(values)
            return {int(number): str(name)[:MOST_NAME_CHARS] for number, name in pairs}
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: the names of classes in its header are damaged ('{comment[:60]}').") from error
    return {}
