"""Classes and features beside the splats of a .ply, written by a third party's library."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from splat_scenes import likely_splats

from scene_distill.core.errors import UserError
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import read_ply, write_ply
from scene_distill.export.semantic_columns import read_semantics

plyfile = pytest.importorskip("plyfile")


def with_columns(path, columns: dict[str, np.ndarray], comments=(), text=False):
    """A splat file with further properties of its vertices."""
    count = len(next(iter(columns.values())))
    write_ply(likely_splats(count), path, SplatMetadata())
    rows = plyfile.PlyData.read(path)["vertex"].data
    fields = [*rows.dtype.descr, *((name, values.dtype.str) for name, values in columns.items())]
    wider = np.empty(count, fields)
    for name in rows.dtype.names:
        wider[name] = rows[name]
    for name, values in columns.items():
        wider[name] = values
    element = plyfile.PlyElement.describe(wider, "vertex")
    plyfile.PlyData([element], text=text, comments=list(comments)).write(path)
    return path


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-3, 60), min_size=1, max_size=40), st.sampled_from(["i4", "f4", "i2"]), st.booleans())
def test_labels_come_back_in_the_splats_order_with_their_names(tmp_path_factory, values, kind, text):
    path = tmp_path_factory.mktemp("semantics") / "scene.ply"
    numbers = np.array(values, kind)
    names = {str(number): f"kind {number}" for number in range(0, 60, 2)}
    comments = [f"scene_distill.classes {json.dumps(names)}"]
    found = read_semantics(with_columns(path, {"label": numbers}, comments, text))
    assert len(read_ply(path)[0]) == len(values) == len(found.labels)
    for value, label in zip(values, found.labels.tolist(), strict=True):
        expected = None if value < 0 else names.get(str(value), f"class {value}")
        assert (None if label < 0 else found.names[label]) == expected


@pytest.mark.parametrize("name", ["semantic", "Label", "class", "class_id", "scalar_label", "semantic_class"])
def test_other_names_of_the_property_are_known(tmp_path, name):
    found = read_semantics(with_columns(tmp_path / "a.ply", {name: np.array([4, 4, 9], "u1")}))
    assert found.labels.tolist() == [0, 0, 1] and found.names == ("class 4", "class 9") and found.source == name


def test_features_come_in_the_order_of_their_numbers(tmp_path):
    columns = {f"f_sem_{index}": np.full(4, float(index), "f4") for index in (2, 0, 11, *range(3, 11), 1)}
    found = read_semantics(with_columns(tmp_path / "a.ply", columns))
    assert torch.equal(found.features[0], torch.arange(12.0)) and found.labels is None


def test_a_plain_file_says_nothing(tmp_path):
    write_ply(likely_splats(3, 16), tmp_path / "a.ply", SplatMetadata())
    assert read_semantics(tmp_path / "a.ply") is None


@pytest.mark.parametrize(
    "columns,comments,message",
    [
        ({"label": np.array([0.5, 1.0], "f4")}, (), "not whole"),
        ({"label": np.array([np.nan, 1.0], "f4")}, (), "not whole"),
        ({"semantic": np.arange(5000, dtype="i4")}, (), "5000 classes"),
        ({"f_sem_0": np.zeros(2, "f4"), "f_sem_2": np.zeros(2, "f4")}, (), "without a gap"),
        ({"f_sem_0": np.array([np.inf, 0.0], "f4")}, (), "finite"),
        ({"class": np.zeros(2, "u1")}, ("scene_distill.classes {1",), "damaged"),
        ({"class": np.zeros(2, "u1")}, ("scene_distill.classes 7",), "damaged"),
    ],
)
def test_what_names_no_classes_is_told_in_one_sentence(tmp_path, columns, comments, message):
    path = with_columns(tmp_path / "a.ply", columns, comments)
    with pytest.raises(UserError, match=message) as told:
        read_semantics(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)
