import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.core.errors import UserError
from scene_distill.export import read_splats, write_splats
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import read_ply, write_ply
from scene_distill.representations.splats import Splats

FIELDS = ("means", "log_scales", "quats", "opacity_logits", "sh")
DATA = Path(os.environ.get("SCENE_DISTILL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "splats"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="splat files of the shared data set are not here")


def random_splats(count, bases=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"means": (3,), "log_scales": (3,), "quats": (4,), "opacity_logits": (), "sh": (bases, 3)}
    return Splats(**{name: 3 * torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()})


def assert_equal(found, expected):
    for name in FIELDS:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


metadata = st.builds(
    SplatMetadata,
    unit=st.sampled_from(["metre", "unknown"]),
    up=st.none() | st.tuples(*[st.floats(-1, 1)] * 3),
    origin=st.none() | st.tuples(*[st.floats(-1e6, 1e6)] * 3),
    source=st.text(max_size=40),
    antialiased=st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 40), bases=st.sampled_from([1, 4, 9, 16]), seed=st.integers(0, 1000), metadata=metadata)
def test_round_trip_is_exact(tmp_path_factory, count, bases, seed, metadata):
    path = tmp_path_factory.mktemp("ply") / "scene.ply"
    splats = random_splats(count, bases, seed)
    write_ply(splats, path, metadata)
    found, found_metadata = read_ply(path)
    assert_equal(found, splats)
    assert found_metadata == metadata
    assert [file.name for file in path.parent.iterdir()] == ["scene.ply"]


def test_many_chunks_round_trip(tmp_path, monkeypatch):
    monkeypatch.setattr("scene_distill.export.ply.CHUNK_ROWS", 7)
    splats = random_splats(100)
    write_splats(splats, tmp_path / "scene.ply", SplatMetadata())
    assert_equal(read_splats(tmp_path / "scene.ply")[0], splats)


def test_plyfile_reads_what_is_written(tmp_path):
    splats = random_splats(50)
    write_ply(splats, tmp_path / "scene.ply", SplatMetadata(unit="metre", up=(0.0, 0.0, 1.0)))
    vertex = plyfile.PlyData.read(tmp_path / "scene.ply")["vertex"]
    names = [item.name for item in vertex.properties]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[-8:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert len(names) == 62
    np.testing.assert_array_equal(vertex["y"], splats.means[:, 1])
    np.testing.assert_array_equal(vertex["nz"], 0)
    np.testing.assert_array_equal(vertex["rot_0"], splats.quats[:, 0])
    for channel in range(3):
        np.testing.assert_array_equal(vertex[f"f_dc_{channel}"], splats.sh[:, 0, channel])
        for base in range(1, 16):  # channel-major: 15 red, 15 green, 15 blue
            np.testing.assert_array_equal(vertex[f"f_rest_{15 * channel + base - 1}"], splats.sh[:, base, channel])


def vertex_table(splats, names):
    values = {"x": splats.means[:, 0], "y": splats.means[:, 1], "z": splats.means[:, 2]}
    values |= {f"f_dc_{i}": splats.sh[:, 0, i] for i in range(3)} | {"opacity": splats.opacity_logits}
    values |= {f"f_rest_{i}": splats.sh[:, 1:].transpose(1, 2).flatten(1)[:, i] for i in range(9)}
    values |= {f"scale_{i}": splats.log_scales[:, i] for i in range(3)}
    values |= {f"rot_{i}": splats.quats[:, i] for i in range(4)}
    table = np.empty(len(splats), [(name, "f8" if name == "opacity" else "f4") for name in names])
    for name in names:
        table[name] = values.get(name, torch.full((len(splats),), 7.0)).numpy()
    return table


@pytest.mark.parametrize("text,byte_order", [(False, "<"), (False, ">"), (True, "=")])
def test_other_layouts_written_by_plyfile_are_read(tmp_path, text, byte_order):
    splats = random_splats(20, bases=4)
    names = ["opacity", "rot_3", "rot_2", "rot_1", "rot_0", "unknown", "scale_2", "scale_1", "scale_0", "z", "y", "x"]
    names += [f"f_rest_{i}" for i in reversed(range(9))] + ["f_dc_2", "f_dc_1", "f_dc_0"]
    before = plyfile.PlyElement.describe(np.array([(1.0, 2), (3.0, 4)], [("a", "f8"), ("b", "u1")]), "chunk")
    after = plyfile.PlyElement.describe(np.array([([1, 2],)], [("vertex_indices", "i4", (2,))]), "face")
    vertex = plyfile.PlyElement.describe(vertex_table(splats, names), "vertex")
    data = plyfile.PlyData([before, vertex, after], text=text, byte_order=byte_order, comments=["made elsewhere"])
    data.write(tmp_path / "other.ply")
    found, metadata = read_ply(tmp_path / "other.ply")
    for name in FIELDS:
        torch.testing.assert_close(getattr(found, name), getattr(splats, name), atol=0, rtol=1e-6 if text else 0)
    assert metadata == SplatMetadata(generator="")


def written(tmp_path, count=10):
    path = tmp_path / "scene.ply"
    write_ply(random_splats(count, bases=4), path, SplatMetadata(up=(0.0, 0.0, 1.0)))
    return path, path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_cut_or_flipped_files_are_refused_or_read_but_never_crash(tmp_path_factory, data):
    path, content = written(tmp_path_factory.mktemp("damaged"))
    header = content.index(b"end_header\n") + 11
    damaged = bytearray(content[: data.draw(st.integers(0, len(content)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, min(len(damaged), header) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        found, _ = read_ply(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert len(found) <= 10


@pytest.mark.parametrize(
    "old,new,message",
    [
        (b"ply\n", b"pky\n", "not a PLY file"),
        (b"element vertex 10\n", b"element vertex 11\n", "cut off"),
        (b"element vertex 10\n", b"element vertex 99999999999999\n", "cut off"),
        (b"element vertex 10\n", b"element vertex -1\n", "damaged PLY header"),
        (b"element vertex 10\n", b"element vertex 0\n", "promises 0 splats"),
        (b"element vertex 10\n", b"element vortex 10\n", "no 'vertex'"),
        (b"property float x\n", b"property float y\n", "declared twice"),
        (b"property float x\n", b"property list uchar int x\n", "list"),
        (b"property float x\n", b"property half x\n", "no known type"),
        (b"property float opacity\n", b"property float density\n", "lack opacity"),
        (b"property float f_dc_0\n", b"property float red\n", "point cloud"),
        (b"property float f_rest_8\n", b"property float f_rest_9\n", "f_rest"),
        (b"property float f_rest_8\n", b"property float other\n", "f_rest"),
        (b"property float nx\n", b"property uint packed_position\n", "compressed"),
        (b"binary_little_endian", b"binary_middle_endian", "damaged PLY header"),
        (b"end_header\n", b"", "without an end"),
        (b"up [0.0, 0.0, 1.0]", b"up [0.0, 0.0]", "three numbers"),
        (b"up [0.0, 0.0, 1.0]", b"up [0.0, 0.0", "header comment"),
        (b"element vertex 10\n", b"comment " + b"x" * (1 << 20) + b"\nelement vertex 10\n", "without an end"),
    ],
)
def test_damaged_headers_get_one_sentence(tmp_path, old, new, message):
    path, content = written(tmp_path)
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read_ply(path)


def test_numbers_that_are_not_finite_are_counted(tmp_path):
    path, content = written(tmp_path)
    path.write_bytes(content[:-4] + np.float32(np.nan).tobytes())
    with pytest.raises(UserError, match="1 of 10 splats"):
        read_ply(path)


def test_ascii_damage(tmp_path):
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
    names += ["rot_0", "rot_1", "rot_2", "rot_3"]
    header = ["ply", "format ascii 1.0", "element vertex 2", *(f"property float {name}" for name in names)]
    for rows, message in (
        (["1 " * 14, "1 " * 13 + "1"], None),
        (["1 " * 14, "1 " * 13 + "   "], "splat 1: expected 14 numbers"),
        (["1 " * 14, "1 " * 13 + "x "], "splat 1: expected 14 numbers"),
        (["1 " * 14, " 1" * 5000], "too long"),
        (["1.00 " * 14], "is missing"),
        (["1 " * 14], "cut off"),
    ):
        (tmp_path / "text.ply").write_text("\n".join([*header, "end_header", *rows]) + "\n")
        if message is None:
            assert len(read_ply(tmp_path / "text.ply")[0]) == 2
        else:
            with pytest.raises(UserError, match=message):
                read_ply(tmp_path / "text.ply")


def test_missing_files_empty_scenes_and_unknown_names(tmp_path):
    with pytest.raises(UserError, match="Cannot read"):
        read_ply(tmp_path / "missing.ply")
    with pytest.raises(UserError, match="no splats"):
        write_ply(random_splats(0), tmp_path / "empty.ply", SplatMetadata())
    with pytest.raises(UserError, match=r"\.ply or \.splat"):
        write_splats(random_splats(1), tmp_path / "scene.obj", SplatMetadata())
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path, content = written(tmp_path)

    def full_disk(splats, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scene_distill.export.ply._rows", full_disk)
    with pytest.raises(UserError, match="No space"):
        write_ply(random_splats(5), path, SplatMetadata())
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="address-space limits are a Linux matter")
def test_a_hostile_count_allocates_nothing(tmp_path):
    path, content = written(tmp_path)
    path.write_bytes(content.replace(b"element vertex 10\n", b"element vertex 400000000\n"))
    code = (
        "import sys, resource, pathlib\n"
        "from scene_distill.export.ply import read_ply\n"
        "from scene_distill.core.errors import UserError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_ply(pathlib.Path(sys.argv[1]))\n"
        "except UserError:\n    pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=60)
    assert int(result.stdout) * 1024 < 32 << 20


@needs_data
@pytest.mark.parametrize(
    "name,count,degree",
    [
        ("fixtures/train-1000.ply", 1000, 3),
        ("converted/playbot_lod4.ply", 8406, 2),
        ("converted/playbot_lod5.ply", 3000, 2),
        ("converted/guitar_8k.ply", 8000, 0),
    ],
)
def test_real_files_agree_with_plyfile(tmp_path, name, count, degree):
    splats, _ = read_ply(DATA / name)
    vertex = plyfile.PlyData.read(DATA / name)["vertex"]
    assert len(splats) == count and splats.sh_degree == degree
    np.testing.assert_array_equal(splats.means[:, 2], vertex["z"])
    np.testing.assert_array_equal(splats.quats[:, 3], vertex["rot_3"])
    np.testing.assert_array_equal(splats.log_scales[:, 1], vertex["scale_1"])
    if degree:
        rest = (degree + 1) ** 2 - 1
        np.testing.assert_array_equal(splats.sh[:, 3, 2], vertex[f"f_rest_{2 * rest + 2}"])
    write_ply(splats, tmp_path / "again.ply", SplatMetadata())
    assert_equal(read_ply(tmp_path / "again.ply")[0], splats)


@needs_data
def test_a_compressed_file_is_named_as_such():
    with pytest.raises(UserError, match="compressed"):
        read_ply(DATA / "converted/playbot_lod5.compressed.ply")
