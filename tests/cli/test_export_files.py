"""`scene-distill export FILE`: any splat file into any other."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from scene_distill.cli.export import main
from scene_distill.core.errors import UserError
from scene_distill.export import SPLAT_FORMATS, read_splats, write_splats
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.round_trip import orbit_views, pictures, round_trip_psnr
from scene_distill.representations.splats import Splats

METADATA = SplatMetadata(unit="metre", up=(0.0, 0.0, 1.0), source="town", origin=(48.0, 11.0, 500.0))
LEAST_DB = {"ply": 60, "splat": 20, "compressed.ply": 40, "spz": 40, "sog": 40, "sog-folder": 40, "glb": 60,
            "gltf": 60, "html": 40}  # fmt: skip


def surface(count=3000):
    """Splats on a wavy sheet, coloured by place."""
    generator = torch.Generator().manual_seed(0)
    xy = 4 * torch.rand(count, 2, generator=generator) - 2
    means = torch.cat([xy, 0.3 * torch.sin(2 * xy.sum(1, keepdim=True))], dim=1)
    sh = 0.05 * torch.randn(count, 16, 3, generator=generator)
    sh[:, 0] = torch.cat([xy, xy[:, :1] - xy[:, 1:]], dim=1) * 0.7
    return Splats(
        means=means, log_scales=0.3 * torch.randn(count, 3, generator=generator) - 3,
        quats=torch.randn(count, 4, generator=generator), opacity_logits=torch.randn(count, generator=generator) + 1,
        sh=sh,
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a scene in every format, and what the command printed."""
    folder = tmp_path_factory.mktemp("exported")
    write_splats(surface(), folder / "town.ply", METADATA)
    import contextlib
    import io

    from scene_distill.core import console

    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.MonkeyPatch.context() as patch:
        patch.setattr(console.console, "_file", told)
        main([str(folder / "town.ply"), "--output-dir", str(folder / "out"), "--format", *LEAST_DB])
    return folder, told.getvalue()


def test_every_format_is_known_to_the_test_and_to_the_help(exported):
    assert {known.name for known in SPLAT_FORMATS} == set(LEAST_DB)
    from scene_distill.cli import export

    assert all(known.name in export.Export.__doc__ + Path(export.__file__).read_text() for known in SPLAT_FORMATS)


def test_sizes_and_losses_are_printed_and_within_the_bars(exported):
    folder, told = exported
    values = [float(value) for value in re.findall(r"round trip: PSNR ([0-9.]+) dB", told)]
    assert len(values) == len(LEAST_DB) and told.count("3000 splats") == len(LEAST_DB)
    assert "next: " in told.splitlines()[-1]
    for (name, least), value in zip(LEAST_DB.items(), values, strict=True):
        assert value >= least, (name, value)
    sizes = [float(size) for size in re.findall(r"splats, ([0-9.]+) MB", told)]
    for known, size in zip(LEAST_DB, sizes, strict=True):
        path = next(f for f in SPLAT_FORMATS if f.name == known).path_in(folder / "out", "town")
        files = path.parent.iterdir() if path.name == "meta.json" else [path, path.with_suffix(".bin")]
        files = files if known in ("sog-folder", "gltf") else [path]
        assert size == pytest.approx(sum(file.stat().st_size for file in files) / 1e6, abs=0.006)


@pytest.mark.parametrize("known", SPLAT_FORMATS, ids=lambda known: known.name)
def test_every_file_is_a_source_with_its_frame_and_provenance(exported, tmp_path, known):
    folder, _ = exported
    path = known.path_in(folder / "out", "town")
    splats, metadata = read_splats(path)
    assert len(splats) == 3000
    if known.name != "splat":
        assert metadata == METADATA
        assert splats.sh_degree == 3
    source = path.parent if path.name == "meta.json" else path
    main([str(source), "--output-dir", str(tmp_path), "--format", "ply"])
    again, metadata_again = read_splats(next(tmp_path.glob("*.ply")))
    assert torch.equal(again.means, splats.means)
    assert metadata_again.source in ("town", "town.splat")


def test_spz_versions(exported, tmp_path):
    folder, _ = exported
    for version in (2, 3, 4):
        main(
            [str(folder / "town.ply"), "--output-dir", str(tmp_path), "--format", "spz", "--spz-version", str(version)]
        )
        assert len(read_splats(tmp_path / "town.spz")[0]) == 3000
        assert (tmp_path / "town.spz").read_bytes()[:4] == (b"NGSP" if version == 4 else b"\x1f\x8b\x08\x10")
    with pytest.raises(UserError, match=r"no \.spz version 5"):
        main([str(folder / "town.ply"), "--output-dir", str(tmp_path), "--format", "spz", "--spz-version", "5"])


def test_a_packed_ply_under_a_plain_name_is_read(exported, tmp_path):
    folder, _ = exported
    (tmp_path / "other.ply").write_bytes((folder / "out" / "town.compressed.ply").read_bytes())
    assert len(read_splats(tmp_path / "other.ply")[0]) == 3000


def test_mistakes_get_one_sentence(exported, tmp_path):
    folder, _ = exported
    for arguments, message in (
        ([folder / "town.ply", "--format", "obj3"], "no format 'obj3'"),
        ([folder / "town.ply", "--format", "ply"], "is the source itself"),
        ([tmp_path / "missing.ply"], "missing.ply"),
        ([folder / "town.ply", "--output-dir", folder / "town.ply"], "town.ply"),
    ):
        with pytest.raises(UserError, match=message):
            main([str(argument) for argument in arguments])


def test_the_views_show_the_scene_and_their_psnr_counts_what_is_covered():
    splats = surface()
    views = orbit_views(splats, (0.0, 0.0, 1.0))
    shown = pictures(splats, views)
    for camera, covered in zip(views.cameras, shown.covered, strict=True):
        assert camera.center[2] > 0 and covered.float().mean() > 0.1
    assert round_trip_psnr(shown, shown) == [100.0] * 3
    darker = Splats(splats.means, splats.log_scales, splats.quats, splats.opacity_logits, splats.sh - 0.1 / 0.2821)
    values = round_trip_psnr(shown, pictures(darker, views))
    assert all(15 < value < 26 for value in values)
    np.testing.assert_allclose(values, round_trip_psnr(pictures(darker, views), shown), atol=0.2)
