import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.extra import numpy as hnp

from scene_distill.core.errors import UserError
from scene_distill.data.point_clouds import read_point_cloud, write_point_cloud


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(data=st.data(), count=st.integers(0, 20))
def test_round_trip(tmp_path, data, count):
    points = data.draw(hnp.arrays(float, (count, 3), elements=st.floats(allow_nan=False)))
    colors = data.draw(hnp.arrays(np.uint8, (count, 3)))
    write_point_cloud(tmp_path / "p.ply", points, colors)
    read = read_point_cloud(tmp_path / "p.ply")
    np.testing.assert_array_equal(read[0], points)
    np.testing.assert_array_equal(read[1], colors)


@pytest.mark.parametrize(("text", "order"), [(True, "="), (False, "<"), (False, ">")])
def test_reads_what_plyfile_writes(tmp_path, text, order):
    plyfile = pytest.importorskip("plyfile")
    table = np.zeros(
        5, [("nx", "f4"), ("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    )
    table["y"], table["green"] = np.arange(5), np.arange(5) * 10
    faces = np.array([([0, 1, 2],)], dtype=[("vertex_indices", "i4", (3,))])
    elements = [plyfile.PlyElement.describe(table, "vertex"), plyfile.PlyElement.describe(faces, "face")]
    plyfile.PlyData(elements, text=text, byte_order=order).write(tmp_path / "p.ply")
    points, colors = read_point_cloud(tmp_path / "p.ply")
    assert points[:, 1].tolist() == [0, 1, 2, 3, 4] and colors[:, 1].tolist() == [0, 10, 20, 30, 40]


def test_clouds_without_colour_are_grey_and_damage_is_told(tmp_path):
    path = tmp_path / "p.ply"
    path.write_text("ply\nformat ascii 1.0\nelement vertex 2\n" + "property float x\nproperty float y\n" * 1)
    with pytest.raises(UserError, match=r"p\.ply is damaged"):
        read_point_cloud(path)
    header = (
        "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    path.write_text(header + "1 2 3\n4 5 6\n")
    points, colors = read_point_cloud(path)
    assert points.tolist() == [[1, 2, 3], [4, 5, 6]] and (colors == 128).all()
    for order, count in ((b"binary_little_endian", b"9" * 30), (b"binary_little_" * 300, b"2")):
        path.write_bytes(header.encode().replace(b"ascii", order).replace(b"vertex 2", b"vertex " + count))
        with pytest.raises(UserError, match=r"p\.ply is damaged") as told:
            read_point_cloud(path)
        assert len(str(told.value)) < 300 + len(str(path))
    path.write_text(header + "1 2 3")
    with pytest.raises(UserError, match="promises 2 vertices"):
        read_point_cloud(path)
    with pytest.raises(UserError, match="missing"):
        read_point_cloud(tmp_path / "none.ply")
