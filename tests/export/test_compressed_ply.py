import numpy as np
import plyfile
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from splat_scenes import DATA, assert_close, likely_splats, needs_data

from scene_distill.core.errors import UserError
from scene_distill.export import read_splats
from scene_distill.export.assembly import neighbour_order
from scene_distill.export.compressed_ply import read_compressed_ply, write_compressed_ply
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import read_ply

CLOSE = {"opacities": 0.51 / 255, "sh": 0.5001 * 8 / 256, "turn": 0.006}


def written(splats, path, metadata=None):
    """The splats in the file's order, and what is read back."""
    write_compressed_ply(splats, path, metadata or SplatMetadata())
    return splats.select(neighbour_order(splats.means)), read_compressed_ply(path)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 700), bases=st.sampled_from([1, 4, 9, 16]), seed=st.integers(0, 1000))
def test_round_trip_within_a_quantum_of_each_chunk(tmp_path_factory, count, bases, seed):
    path = tmp_path_factory.mktemp("packed") / "scene.compressed.ply"
    expected, (found, _) = written(likely_splats(count, bases, seed), path)
    for start in range(0, count, 256):
        rows = torch.arange(start, min(start + 256, count))
        old, new = expected.select(rows), found.select(rows)
        extent = (old.means.amax(0) - old.means.amin(0)).max() / 2046 + 1e-6
        spread = (old.log_scales.amax(0) - old.log_scales.amin(0)).max() / 2046 + 1e-6
        assert_close(new, old, means=extent * 1.01, log_scales=spread * 1.01, colors=0.51 / 255, **CLOSE)


def test_metadata_travels(tmp_path):
    metadata = SplatMetadata(unit="metre", up=(0.0, 0.0, 1.0), source="town", antialiased=True, origin=(1.0, 2.0, 3.0))
    _, (_, found) = written(likely_splats(3), tmp_path / "scene.compressed.ply", metadata)
    assert found == metadata


def test_flat_and_opaque_splats_are_kept_finite(tmp_path):
    splats = likely_splats(300)
    splats.log_scales[7, 2], splats.opacity_logits[7], splats.quats[8] = -torch.inf, torch.inf, 0
    expected, (found, _) = written(splats, tmp_path / "scene.compressed.ply")
    row = int(torch.nonzero(torch.isinf(expected.opacity_logits))[0])
    assert found.log_scales[row, 2] < -19 and found.opacity_logits[row] > 5
    assert torch.isfinite(found.log_scales).all() and torch.isfinite(found.quats).all()


def test_plyfile_sees_the_layout_that_playcanvas_reads(tmp_path):
    write_compressed_ply(likely_splats(300, 9), tmp_path / "scene.compressed.ply", SplatMetadata())
    data = plyfile.PlyData.read(tmp_path / "scene.compressed.ply")
    assert [element.name for element in data.elements] == ["chunk", "vertex", "sh"]
    assert [p.name for p in data["chunk"].properties][:7] == [
        "min_x", "min_y", "min_z", "max_x", "max_y", "max_z", "min_scale_x",
    ]  # fmt: skip
    assert [p.name for p in data["vertex"].properties] == [
        "packed_position", "packed_rotation", "packed_scale", "packed_color",
    ]  # fmt: skip
    assert data["chunk"].count == 2 and data["vertex"].count == data["sh"].count == 300
    assert len(data["sh"].properties) == 24
    corner = data["chunk"]["min_x"][0]
    positions = data["vertex"]["packed_position"][:256]
    assert (positions >> 21).min() == 0 and (positions >> 21).max() == 2047
    assert corner == pytest.approx(read_compressed_ply(tmp_path / "scene.compressed.ply")[0].means[:256, 0].min())


@needs_data
@pytest.mark.parametrize("name", ["playbot_lod4", "playbot_lod5"])
def test_a_third_partys_file_is_the_same_scene_as_its_ply(name):
    found, _ = read_splats(DATA / f"converted/{name}.compressed.ply")
    expected, _ = read_ply(DATA / f"converted/{name}.ply")
    from scipy.spatial import cKDTree

    distances, nearest = cKDTree(expected.means).query(found.means)
    assert distances.max() < 1e-3
    single = np.unique(nearest, return_counts=True)
    rows = np.isin(nearest, single[0][single[1] == 1])
    expected = expected.select(torch.from_numpy(nearest[rows]))
    found = found.select(torch.from_numpy(rows))
    assert len(found) > 0.9 * len(nearest)
    error = (found.sh - expected.sh).flatten(1).abs().amax(1)
    assert float(error.quantile(0.98)) < 0.06
    assert float((found.log_scales - expected.log_scales).abs().amax(1).quantile(0.98)) < 0.02


@needs_data
def test_a_large_real_file_is_read():
    found, _ = read_splats(DATA / "playcanvas/guitar.compressed.ply")
    assert len(found) == 90_854 and torch.isfinite(found.means).all()


@pytest.mark.parametrize(
    "old,new,message",
    [
        (b"element vertex 300", b"element vertex 999", "do not fit"),
        (b"element vertex 300", b"element vertex 0", "promises 0"),
        (b"element chunk 2", b"element chunk 9", "do not fit"),
        (b"element chunk 2", b"element chuck 2", "not a compressed"),
        (b"property uint packed_scale", b"property uint packed_other", "packed_scale"),
        (b"property float min_x", b"property double min_x", "min_x"),
        (b"uchar f_rest_8", b"uchar f_rest_9", "view-dependent"),
        (b"element sh 300", b"element sh 299", "do not fit"),
    ],
)
def test_wrong_headers_get_one_sentence(tmp_path, old, new, message):
    path = tmp_path / "scene.compressed.ply"
    write_compressed_ply(likely_splats(300, 4), path, SplatMetadata())
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read_compressed_ply(path)


def test_bounds_that_are_not_numbers_and_cut_files_are_refused(tmp_path):
    path = tmp_path / "scene.compressed.ply"
    write_compressed_ply(likely_splats(300, 4), path, SplatMetadata())
    content = path.read_bytes()
    start = content.index(b"end_header\n") + 11
    path.write_bytes(content[:start] + np.float32(np.nan).tobytes() + content[start + 4 :])
    with pytest.raises(UserError, match="bounds"):
        read_compressed_ply(path)
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match="cut off"):
        read_compressed_ply(path)


def test_what_cannot_be_packed_is_refused_and_nothing_is_written(tmp_path):
    splats = likely_splats(10)
    splats.means[3, 1] = torch.nan
    with pytest.raises(UserError, match="1 of 10 splats"):
        write_compressed_ply(splats, tmp_path / "scene.compressed.ply", SplatMetadata())
    assert not list(tmp_path.iterdir())
