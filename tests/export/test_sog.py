import io
import json
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial import cKDTree
from splat_scenes import DATA, assert_close, likely_splats, needs_data

from scene_distill.core.errors import UserError
from scene_distill.export import read_splats
from scene_distill.export.assembly import neighbour_order
from scene_distill.export.codebooks import nearest_entries, scalar_codebook, vector_codebook
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import read_ply
from scene_distill.export.sog import linear_space, log_space, write_sog, write_sog_folder
from scene_distill.export.sog_reader import read_sog, read_sog_folder


@settings(max_examples=12, deadline=None)
@given(count=st.integers(1, 300), bases=st.sampled_from([1, 4, 9, 16]), seed=st.integers(0, 1000))
def test_round_trip_in_spatial_order(tmp_path_factory, count, bases, seed):
    path = tmp_path_factory.mktemp("sog") / "scene.sog"
    splats = likely_splats(count, bases, seed)
    write_sog(splats, path, SplatMetadata())
    found, _ = read_sog(path)
    expected = splats.select(neighbour_order(splats.means))
    assert_close(found, expected, means=2e-3, log_scales=0.15, opacities=0.51 / 255, colors=0.03, sh=0.08, turn=0.025)
    assert (found.log_scales - expected.log_scales).abs().mean() < 0.012


def test_metadata_travels_in_archives_and_folders(tmp_path):
    metadata = SplatMetadata(unit="metre", up=(0.0, 0.0, 1.0), source="town", antialiased=True, origin=(1.0, 2.0, 3.0))
    write_sog(likely_splats(3), tmp_path / "scene.sog", metadata)
    write_sog_folder(likely_splats(3), tmp_path / "scene" / "meta.json", metadata)
    assert read_sog(tmp_path / "scene.sog")[1] == metadata
    assert read_sog_folder(tmp_path / "scene" / "meta.json")[1] == metadata
    with zipfile.ZipFile(tmp_path / "scene.sog") as archive:
        assert json.loads(archive.read("meta.json"))["model"] == "antialiased"
        for name in archive.namelist():
            assert archive.read(name) == (tmp_path / "scene" / name).read_bytes()


def test_a_palette_smaller_than_the_scene_still_serves_it(tmp_path, monkeypatch):
    monkeypatch.setattr("scene_distill.export.sog.SMALL_SCENE", 10)
    kinds = torch.randn(20, 15, 3, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)
    splats = likely_splats(1500, 16)
    owners = torch.randint(20, (1500,), generator=torch.Generator().manual_seed(4))
    splats.sh[:, 1:] = kinds[owners]
    write_sog(splats, tmp_path / "scene.sog", SplatMetadata())
    expected = splats.select(neighbour_order(splats.means))
    found, _ = read_sog(tmp_path / "scene.sog")
    assert (found.sh[:, 1:] - expected.sh[:, 1:]).abs().mean() < 0.02
    with zipfile.ZipFile(tmp_path / "scene.sog") as archive:
        assert json.loads(archive.read("meta.json"))["shN"]["count"] <= 1024


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_log_space_is_undone(values):
    values = np.array(values)
    np.testing.assert_allclose(linear_space(log_space(values)), values, rtol=1e-9, atol=1e-12)


def test_scalar_codebooks_are_exact_for_few_values_and_close_for_many():
    few = np.random.default_rng(0).choice(np.linspace(-3, 3, 200).astype(np.float32), 5000)
    codebook = scalar_codebook(few)
    np.testing.assert_array_equal(codebook[nearest_entries(few, codebook)], few)
    many = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    codebook = scalar_codebook(many)
    assert len(codebook) == 256 and (np.diff(codebook) >= 0).all()
    error = np.abs(codebook[nearest_entries(many, codebook)] - many)
    uniform = (many.max() - many.min()) / 255 / np.sqrt(12)
    assert np.sqrt((error**2).mean()) < 0.75 * uniform and error.max() < 0.1


def test_vector_codebooks_use_their_entries_and_refer_to_the_near_ones():
    rows = torch.randn(3000, 9, generator=torch.Generator().manual_seed(0))
    palette, labels = vector_codebook(lambda index: rows[index], 3000, 256)
    assert len(palette) <= 256 and labels.max() < len(palette) and len(np.unique(labels)) > 200
    chosen = (rows - palette[labels.astype(np.int64)]).square().sum(1)
    best = torch.cdist(rows, palette).square().amin(1)
    assert chosen.mean() < 1.25 * best.mean() < 0.6 * rows.square().sum(1).mean()


@needs_data
def test_a_third_partys_folder_is_its_ply_to_the_last_bit():
    found, metadata = read_splats(DATA / "playbot_sog/4_0/meta.json")
    expected, _ = read_ply(DATA / "converted/playbot_lod4.ply")
    assert "splat-transform" in metadata.generator
    assert_close(found, expected, means=1e-6, log_scales=1e-6, opacities=1e-6, colors=1e-6, sh=1e-6, turn=2e-3)


@needs_data
@pytest.mark.parametrize("name", ["playbot_lod4", "playbot_lod5"])
def test_a_third_partys_archive_holds_the_same_splats(name):
    found, _ = read_splats(DATA / f"converted/{name}.sog")
    expected, _ = read_ply(DATA / f"converted/{name}.ply")
    assert len(found) == len(expected)
    for one, other in ((found, expected), (expected, found)):
        distances, nearest = cKDTree(other.means).query(one.means)
        assert distances.max() < 2e-3
        assert (one.log_scales - other.log_scales[nearest]).abs().median() < 0.01


@needs_data
@pytest.mark.parametrize("level,count", [("3_0", 31_000), ("5_0", 3_000), ("6_0", 1_873)])
def test_other_levels_of_detail_are_read(level, count):
    found, _ = read_splats(DATA / f"playbot_sog/{level}/meta.json")
    assert len(found) == count and found.sh_degree == 2


def rewritten(path, change):
    """The archive with some of its files changed: name -> bytes or None."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files.update(change(files))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            if content is not None:
                archive.writestr(name, content)


def picture(width, height):
    file = io.BytesIO()
    Image.new("RGBA", (width, height)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def picture_that_claims_to_be_huge():
    """A few bytes whose header says 16,384 x 16,384 pixels, 1 GB when unpacked."""
    data = bytearray(picture(8, 8))
    start = data.index(b"VP8L") + 9
    data[start : start + 4] = (int.from_bytes(data[start : start + 4], "little") | (1 << 28) - 1).to_bytes(4, "little")
    return bytes(data)


def with_meta(**values):
    def change(files):
        meta = json.loads(files["meta.json"])
        for name, value in values.items():
            place = meta
            *parents, last = name.split("__")
            for parent in parents:
                place = place[parent]
            place[last] = value
        return {"meta.json": json.dumps(meta).encode()}

    return change


@pytest.mark.parametrize(
    "change,message",
    [
        (with_meta(version=1), "version 1"),
        (with_meta(version=None), "version None"),
        (with_meta(count=10_000), "pixels"),
        (with_meta(count=0), "promises 0"),
        (with_meta(count=10**12), "promises"),
        (with_meta(count=4_000_000), "hostile"),
        (with_meta(count="many"), "whole number"),
        (with_meta(scales__codebook=[1.0] * 255), "256 numbers"),
        (with_meta(sh0__codebook=[float("nan")] * 256), "256 numbers"),
        (with_meta(means__mins=[0, 0, 1e9]), "numbers"),
        (with_meta(means__mins=[0, 0, 500]), "within"),
        (with_meta(quats__files=["missing.webp"]), "lacks missing.webp"),
        (lambda _: {"quats.webp": picture(8, 8)}, "known mode"),
        (with_meta(shN__bands=4), "whole number"),
        (with_meta(shN__count=5), "more than"),
        (lambda _: {"meta.json": b"[" * 100_000}, "damaged meta.json"),
        (lambda _: {"meta.json": bytes(1 << 21)}, "at most"),
        (lambda _: {"quats.webp": b"RIFF"}, "not a whole picture"),
        (lambda _: {"quats.webp": picture(1200, 1200)}, "pixels"),
        (lambda _: {"quats.webp": picture_that_claims_to_be_huge()}, "pixels|whole picture"),
        (lambda _: {"shN_centroids.webp": picture(100, 60)}, "wide"),
        (lambda _: {"means_u.webp": bytes(1 << 25)}, "hostile"),
    ],
)
def test_damaged_and_hostile_sets_get_one_sentence(tmp_path, change, message):
    path = tmp_path / "scene.sog"
    write_sog(likely_splats(40), path, SplatMetadata())
    rewritten(path, change)
    with pytest.raises(UserError, match=message) as told:
        read_sog(path)
    assert str(path) in str(told.value)


def test_files_outside_of_the_folder_are_refused(tmp_path):
    (tmp_path / "secret.webp").write_bytes(picture(8, 8))
    path = tmp_path / "scene" / "meta.json"
    write_sog_folder(likely_splats(40), path, SplatMetadata())
    for name in ("../secret.webp", "/etc/passwd", ".."):
        path.write_text(path.read_text().replace('"quats.webp"', json.dumps(name)))
        with pytest.raises(UserError):
            read_sog_folder(path)
        path.write_text(path.read_text().replace(json.dumps(name), '"quats.webp"'))


@pytest.mark.parametrize("content", [b"", b"PK\5\6" + bytes(18), b"not a zip"])
def test_what_is_no_archive_is_told_so(tmp_path, content):
    (tmp_path / "scene.sog").write_bytes(content)
    with pytest.raises(UserError, match=r"scene\.sog"):
        read_sog(tmp_path / "scene.sog")
