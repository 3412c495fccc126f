import gzip
import json
import struct

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from splat_scenes import DATA, assert_close, likely_splats, needs_data

from scene_distill.core import spherical_harmonics
from scene_distill.core.errors import UserError
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import read_ply
from scene_distill.export.spz import EXTENSION_TYPE, read_spz, write_spz
from scene_distill.representations.splats import Splats

VERSIONS = (2, 3, 4)
CLOSE = {"log_scales": 0.5001 / 16, "opacities": 0.51 / 255, "colors": 0.51 / 255 / 0.15 * 0.2821, "sh": 4.6 / 128}


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 50), bases=st.sampled_from([1, 4, 9, 16]), seed=st.integers(0, 1000),
    version=st.sampled_from(VERSIONS), antialiased=st.booleans(),
)  # fmt: skip
def test_round_trip_within_a_quantum_and_in_order(tmp_path_factory, count, bases, seed, version, antialiased):
    path = tmp_path_factory.mktemp("spz") / "scene.spz"
    splats = likely_splats(count, bases, seed)
    metadata = SplatMetadata(unit="metre", up=(0.0, 0.0, 1.0), source="Zürich <town>", antialiased=antialiased)
    write_spz(splats, path, metadata, version)
    found, found_metadata = read_spz(path)
    assert found_metadata == metadata
    assert_close(found, splats, means=0.5001 / 4096, turn=0.25 if version == 2 else 0.006, **CLOSE)


@pytest.mark.parametrize("version", VERSIONS)
def test_writing_what_was_read_gives_the_same_splats(tmp_path, version):
    write_spz(likely_splats(200), tmp_path / "one.spz", SplatMetadata(), version)
    first, _ = read_spz(tmp_path / "one.spz")
    write_spz(first, tmp_path / "two.spz", SplatMetadata(), version)
    second, _ = read_spz(tmp_path / "two.spz")
    turn = 0.25 if version == 2 else 0.006
    assert_close(second, first, means=1e-6, log_scales=1e-6, opacities=1e-6, colors=1e-6, sh=1e-6, turn=turn)


def test_chunks_do_not_show(tmp_path, monkeypatch):
    splats = likely_splats(100)
    for version in VERSIONS:
        write_spz(splats, tmp_path / f"whole{version}.spz", SplatMetadata(), version)
    whole = {version: read_spz(tmp_path / f"whole{version}.spz")[0] for version in VERSIONS}
    from scene_distill.export import assembly, spz

    monkeypatch.setattr(spz, "row_slices", lambda count: assembly.row_slices(count, 7))
    for version in VERSIONS:
        write_spz(splats, tmp_path / f"chunks{version}.spz", SplatMetadata(), version)
        for path in (tmp_path / f"chunks{version}.spz", tmp_path / f"whole{version}.spz"):
            found = read_spz(path)[0]
            assert torch.equal(found.means, whole[version].means) and torch.equal(found.sh, whole[version].sh)


def test_bytes_are_where_other_programs_expect_them(tmp_path):
    red = torch.tensor([[[1.0, 0.0, 0.5]]])
    splats = Splats(
        means=torch.tensor([[1.0, -2.0, 3.0]]), log_scales=torch.tensor([[-10.0, 0.0, -5.0]]),
        quats=torch.tensor([[0.0, 1.0, 0.0, 0.0]]), opacity_logits=torch.tensor([0.0]),
        sh=spherical_harmonics.constant_coefficients(red[0]),
    )  # fmt: skip
    write_spz(splats, tmp_path / "one.spz", SplatMetadata(antialiased=True), 3)
    content = gzip.decompress((tmp_path / "one.spz").read_bytes())
    assert struct.unpack("<IIIBBBB", content[:16]) == (0x5053474E, 3, 1, 0, 12, 1, 0)
    position = [int.from_bytes(content[i : i + 3], "little", signed=True) / 4096 for i in (16, 19, 22)]
    assert position == [1.0, 2.0, -3.0]  # right-up-back
    assert content[25] == 128 and list(content[29:32]) == [0, 160, 80]
    assert list(content[26:29]) == [195, 60, 128]
    assert int.from_bytes(content[32:36], "little") == 0  # x is the largest, the others are zero
    assert len(content) == 36


def test_fine_scenes_get_finer_positions_and_wide_ones_coarser(tmp_path):
    splats = likely_splats(500, 1)
    tiny = Splats(1e-3 * splats.means, splats.log_scales - 7, splats.quats, splats.opacity_logits, splats.sh)
    write_spz(tiny, tmp_path / "tiny.spz", SplatMetadata())
    assert (read_spz(tmp_path / "tiny.spz")[0].means - tiny.means).abs().max() < 2.0**-18
    wide = Splats(1e4 * splats.means, splats.log_scales, splats.quats, splats.opacity_logits, splats.sh)
    write_spz(wide, tmp_path / "wide.spz", SplatMetadata())
    assert (read_spz(tmp_path / "wide.spz")[0].means - wide.means).abs().max() < 2.0**-5
    far = Splats(1e7 + splats.means, splats.log_scales, splats.quats, splats.opacity_logits, splats.sh)
    with pytest.raises(UserError, match="move the scene to its origin"):
        write_spz(far, tmp_path / "far.spz", SplatMetadata())


@pytest.mark.parametrize("flip", [(1, -1, -1)])
def test_harmonics_change_sign_with_the_axes(tmp_path, flip):
    """The colour that a viewer in the file's axes sees from a turned direction is ours from the direction itself."""
    splats = likely_splats(20)
    write_spz(splats, tmp_path / "one.spz", SplatMetadata(), 3)
    content = gzip.decompress((tmp_path / "one.spz").read_bytes())
    stored = (torch.tensor(list(content[16 + 20 * 20 :])).float().reshape(20, 15, 3) - 128) / 128
    direction = torch.nn.functional.normalize(torch.tensor([[0.2, -0.7, 0.5]]), dim=1)
    ours = spherical_harmonics.evaluate(
        torch.cat([torch.zeros(20, 1, 3), splats.sh[:, 1:]], 1), direction.expand(20, 3)
    )
    theirs = spherical_harmonics.evaluate(
        torch.cat([torch.zeros(20, 1, 3), stored], 1), (direction * torch.tensor(flip)).expand(20, 3)
    )
    torch.testing.assert_close(ours, theirs, atol=0.2, rtol=0)
    assert (ours - theirs).abs().mean() < 0.03 < (ours - ours.mean()).abs().mean()


@needs_data
@pytest.mark.parametrize("version", VERSIONS)
def test_the_smallest_third_party_files_are_read(version):
    found, _ = read_spz(DATA / f"fixtures/minimal-v{version}.spz")
    assert len(found) == 4 and found.sh_degree == 0
    np.testing.assert_allclose(sorted(found.means.abs().sum(1).tolist()), [0, 1, 1, 2], atol=1e-6)


@needs_data
def test_a_payload_without_its_gzip_layer_is_told_so():
    with pytest.raises(UserError, match="lacks the gzip layer"):
        read_spz(DATA / "fixtures/minimal-raw.spz")


@needs_data
@pytest.mark.parametrize("name", ["playbot_lod4", "playbot_lod5"])
def test_a_third_partys_spz_is_what_we_write_of_its_ply(tmp_path, name):
    expected, _ = read_ply(DATA / f"converted/{name}.ply")
    theirs, _ = read_spz(DATA / f"converted/{name}.v3.spz")
    write_spz(expected, tmp_path / "ours.spz", SplatMetadata(), 3)
    ours, _ = read_spz(tmp_path / "ours.spz")
    quantum = 1.01 / 4096
    assert_close(
        theirs, ours, means=quantum, log_scales=1.01 / 16, opacities=1.01 / 255, colors=0.01, sh=0.1, turn=0.01
    )


def damaged(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError) as told:
        read_spz(path)
    assert str(path) in str(told.value)
    return str(told.value)


def test_wrong_headers_get_one_sentence(tmp_path):
    path = tmp_path / "scene.spz"
    write_spz(likely_splats(10, 4), path, SplatMetadata(), 3)
    content = gzip.decompress(path.read_bytes())
    for place, number, message in (
        (0, 7, "NGSP"), (4, 1, "version 1"), (4, 4, "version 4"), (4, 99, "version 99"), (8, 0, "promises 0"),
        (8, 11, "cut off"), (8, 2**32 - 1, "promises"), (8, 2_000_000, "promise"), (12, 4, "degree 4"),
        (13, 24, "fractional bits"),
    ):  # fmt: skip
        width = 4 if place < 12 else 1
        changed = content[:place] + number.to_bytes(width, "little") + content[place + width :]
        assert message in damaged(path, gzip.compress(changed)), (place, number)
    assert "cut off" in damaged(path, gzip.compress(content)[:-9])
    assert "cut off or damaged" in damaged(path, gzip.compress(content)[:-8] + bytes(8))
    assert "neither" in damaged(path, b"")
    assert "neither" in damaged(path, b"PK\3\4")


def test_streams_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "scene.spz"
    write_spz(likely_splats(10, 4), path, SplatMetadata(), 4)
    content = path.read_bytes()
    start = struct.unpack_from("<I", content, 16)[0]
    for place, number, message in (
        (15, 5, "6 streams"), (16, 8, "6 streams"), (16, 2**31, "6 streams"), (start, 2**40, "size"),
        (start + 8, 91, "size"), (start, 3, "zstd"), (12, 2, "streams"),
    ):  # fmt: skip
        width = 1 if place < 16 else 4 if place == 16 else 8
        changed = content[:place] + number.to_bytes(width, "little") + content[place + width :]
        told = damaged(path, changed)
        assert message in told or "damaged" in told or "cut off" in told, (place, number, told)
    assert "cut off" in damaged(path, content[: start + 20])
    assert "damaged" in damaged(path, content[:-30]) or "cut off" in damaged(path, content[:-30])


def test_unknown_extension_records_are_passed_over(tmp_path):
    path = tmp_path / "scene.spz"
    write_spz(likely_splats(10, 4), path, SplatMetadata(source="town"), 4)
    content = path.read_bytes()
    start = struct.unpack_from("<I", content, 16)[0]
    other = struct.pack("<II", 0xADBE0002, 12) + bytes(12)
    path.write_bytes(content[:16] + struct.pack("<I", start + 20) + content[20:32] + other + content[32:])
    assert read_spz(path)[1].source == "town"
    assert struct.unpack_from("<I", content, 32)[0] == EXTENSION_TYPE
    assert json.loads(content[40:start])["source"] == "town"


def test_bombs_are_refused_before_they_unpack(tmp_path):
    head = struct.pack("<IIIBBBB", 0x5053474E, 3, 200_000_000, 3, 12, 0, 0)
    assert "hostile" in damaged(tmp_path / "bomb.spz", gzip.compress(head + bytes(1 << 20)))
    small = struct.pack("<IIIBBBB", 0x5053474E, 3, 10, 0, 12, 0, 0)
    told = damaged(tmp_path / "tail.spz", gzip.compress(small + bytes(200) + bytes(1 << 24), 1))
    assert "follow its last splat" in told
    packed = zstandard.ZstdCompressor().compress(bytes(9 * 10_000_000))
    ngsp = struct.pack("<IIIBBBBI12x", 0x5053474E, 4, 10_000_000, 0, 12, 0, 5, 32)
    assert "hostile" in damaged(tmp_path / "zstd.spz", ngsp + struct.pack("<QQ", len(packed), 9 * 10_000_000) + packed)
