import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.core.conventions import SH_C0
from scene_distill.core.errors import UserError
from scene_distill.export import read_splats, write_splats
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import read_ply
from scene_distill.export.splat import read_splat, write_splat
from scene_distill.representations.splats import Splats

DATA = Path(os.environ.get("SCENE_DISTILL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "splats"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="splat files of the shared data set are not here")


def random_splats(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Splats(
        means=10 * torch.randn(count, 3, generator=generator),
        log_scales=torch.randn(count, 3, generator=generator) - 3,
        quats=torch.randn(count, 4, generator=generator),
        opacity_logits=3 * torch.randn(count, generator=generator),
        sh=(torch.rand(count, 4, 3, generator=generator) - 0.5) / SH_C0,
    )


def importance(splats):
    return splats.log_scales.sum(1).exp() * splats.opacity_logits.sigmoid()


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 50), seed=st.integers(0, 1000))
def test_round_trip_within_a_quantum_and_sorted(tmp_path_factory, count, seed):
    path = tmp_path_factory.mktemp("splat") / "scene.splat"
    splats = random_splats(count, seed)
    write_splat(splats, path, SplatMetadata())
    found, _ = read_splat(path)
    expected = splats.select(torch.argsort(importance(splats), descending=True, stable=True))
    assert torch.equal(found.means, expected.means)
    torch.testing.assert_close(found.log_scales, expected.log_scales, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found.opacity_logits.sigmoid(), expected.opacity_logits.sigmoid(), atol=0.51 / 255, rtol=0
    )
    unit = torch.nn.functional.normalize(expected.quats, dim=1)
    torch.testing.assert_close(found.quats, unit, atol=1.01 / 128, rtol=0)
    torch.testing.assert_close(found.sh * SH_C0, expected.sh[:, :1] * SH_C0, atol=0.51 / 255, rtol=0)


def test_writing_what_was_read_gives_the_same_bytes(tmp_path):
    write_splats(random_splats(300), tmp_path / "one.splat", SplatMetadata())
    first, _ = read_splats(tmp_path / "one.splat")
    write_splats(first, tmp_path / "two.splat", SplatMetadata())
    one = np.fromfile(tmp_path / "one.splat", "u1").reshape(-1, 32)
    two = np.fromfile(tmp_path / "two.splat", "u1").reshape(-1, 32)
    order_one, order_two = (np.lexsort(rows[:, :12].T) for rows in (one, two))  # ties may change places
    np.testing.assert_array_equal(one[order_one][:, 24:28], two[order_two][:, 24:28])
    np.testing.assert_array_equal(one[order_one][:, :12], two[order_two][:, :12])


def test_bytes_are_where_other_programs_expect_them(tmp_path):
    red = torch.tensor([[[1.0, 0.0, 0.25]]])
    splats = Splats(
        means=torch.tensor([[1.0, -2.0, 3.0]]),
        log_scales=torch.tensor([[0.5, 0.25, 2.0]]).log(),
        quats=torch.tensor([[0.0, -2.0, 0.0, 0.0]]),
        opacity_logits=torch.tensor([0.0]),
        sh=(red - 0.5) / SH_C0,
    )
    write_splat(splats, tmp_path / "one.splat", SplatMetadata())
    content = (tmp_path / "one.splat").read_bytes()
    assert len(content) == 32
    np.testing.assert_allclose(np.frombuffer(content[:24], "<f4"), [1, -2, 3, 0.5, 0.25, 2], rtol=1e-6)
    assert list(content[24:28]) == [255, 0, 64, 128]
    assert list(content[28:32]) == [128, 0, 128, 128]


def test_chunks_do_not_show(tmp_path, monkeypatch):
    splats = random_splats(100)
    write_splat(splats, tmp_path / "whole.splat", SplatMetadata())
    monkeypatch.setattr("scene_distill.export.splat.CHUNK_ROWS", 7)
    write_splat(splats, tmp_path / "chunks.splat", SplatMetadata())
    assert (tmp_path / "whole.splat").read_bytes() == (tmp_path / "chunks.splat").read_bytes()
    assert torch.equal(read_splat(tmp_path / "chunks.splat")[0].means, read_splat(tmp_path / "whole.splat")[0].means)


def test_opaque_and_transparent_splats_get_finite_logits(tmp_path):
    splats = random_splats(2)
    extreme = torch.tensor([torch.inf, -50.0])
    splats = Splats(splats.means, splats.log_scales, splats.quats, extreme, splats.sh)
    write_splat(splats, tmp_path / "extreme.splat", SplatMetadata())
    found, _ = read_splat(tmp_path / "extreme.splat")
    assert torch.isfinite(found.opacity_logits).all()
    assert (found.opacity_logits.sigmoid() * 255).round().tolist() == [255, 0]


@pytest.mark.parametrize("content", [b"", b"\0" * 31, b"\0" * 65])
def test_cut_files_are_refused(tmp_path, content):
    (tmp_path / "cut.splat").write_bytes(content)
    with pytest.raises(UserError, match="multiple of 32"):
        read_splat(tmp_path / "cut.splat")


@pytest.mark.parametrize("column,value", [(0, np.nan), (2, np.inf), (3, -1.0), (5, np.inf)])
def test_impossible_numbers_are_refused(tmp_path, column, value):
    write_splat(random_splats(3), tmp_path / "bad.splat", SplatMetadata())
    content = bytearray((tmp_path / "bad.splat").read_bytes())
    content[32 + 4 * column : 36 + 4 * column] = np.float32(value).tobytes()
    (tmp_path / "bad.splat").write_bytes(content)
    with pytest.raises(UserError, match="splat 1 has"):
        read_splat(tmp_path / "bad.splat")


def test_missing_and_empty(tmp_path):
    with pytest.raises(UserError, match="Cannot read"):
        read_splat(tmp_path / "missing.splat")
    with pytest.raises(UserError, match="no splats"):
        write_splat(random_splats(0), tmp_path / "empty.splat", SplatMetadata())


@needs_data
@pytest.mark.parametrize("name", ["playbot_lod4", "playbot_lod5"])
def test_a_third_partys_splat_file_is_the_same_scene_as_its_ply(name):
    found, _ = read_splat(DATA / f"converted/{name}.splat")
    expected, _ = read_ply(DATA / f"converted/{name}.ply")
    assert len(found) == len(expected)
    found, expected = (with_a_place_of_its_own(splats) for splats in (found, expected))
    assert len(found) > 1000 and torch.equal(found.means, expected.means)
    one_grey_level = 1.01 / 255
    for a, b, tolerance in (
        (found.log_scales, expected.log_scales, 1e-4),
        (found.opacity_logits.sigmoid(), expected.opacity_logits.sigmoid(), one_grey_level),
        (0.5 + SH_C0 * found.sh[:, 0], (0.5 + SH_C0 * expected.sh[:, 0]).clamp(0, 1), one_grey_level),
        (found.quats, torch.nn.functional.normalize(expected.quats, dim=1), 1.01 / 128),
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def with_a_place_of_its_own(splats):
    """The splats whose position no other has, sorted by position: files in different orders become comparable."""
    _, first, counts = np.unique(splats.means.numpy(), axis=0, return_index=True, return_counts=True)
    return splats.select(torch.from_numpy(first[counts == 1]))


@needs_data
def test_the_smallest_third_party_file_is_read():
    found, _ = read_splat(DATA / "fixtures/minimal.splat")
    assert len(found) == 4 and torch.isfinite(found.log_scales).all()
