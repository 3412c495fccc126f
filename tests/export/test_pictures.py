import numpy as np
import pytest
import torch
from PIL import Image

from scene_distill.core.errors import UserError
from scene_distill.export.pictures import (
    GAP_PX,
    LABEL_HEIGHT_PX,
    Panel,
    colorise_depth,
    comparison,
    difference,
    write_png,
    write_sheet,
)


def test_png_keeps_eight_bit_values(tmp_path):
    values = torch.arange(256).reshape(16, 16, 1).expand(-1, -1, 3) / 255.0
    write_png(values, tmp_path / "grey.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grey.png"))[..., 1].ravel(), np.arange(256))
    write_png(torch.tensor([[[-1.0, 2.0, torch.nan]]]), tmp_path / "clipped.png")
    assert np.asarray(Image.open(tmp_path / "clipped.png")).tolist() == [[[0, 255, 0]]]


def test_difference_is_magnified_and_clipped():
    found = difference(torch.tensor([[[0.5, 0.9, 2.0]]]), torch.tensor([[[0.4, 0.1, 1.0]]]), gain=3.0)
    torch.testing.assert_close(found, torch.tensor([[[0.3, 1.0, 0.0]]]))


def test_depth_darkens_with_distance_and_is_black_where_there_is_none():
    depth = torch.linspace(1, 50, 64).reshape(8, 8)
    depth[0, 0], depth[7, 7] = 0.0, torch.inf
    colors = colorise_depth(depth)
    lightness = (colors @ torch.tensor([0.3, 0.6, 0.1])).flatten()
    assert (lightness[1:63].diff() <= 1e-6).all() and lightness[1] > 0.8 and lightness[62] < 0.1
    assert (colors[0, 0] == 0).all() and (colors[7, 7] == 0).all()
    assert (colorise_depth(torch.zeros(3, 4)) == 0).all()
    assert torch.isfinite(colorise_depth(torch.full((3, 4), 2.0))).all()


def test_sheet_puts_panels_beside_each_other(tmp_path):
    photo, render = torch.full((30, 40, 3), 0.2), torch.full((30, 40, 3), 0.6)
    rows = [
        comparison(photo, render, torch.ones(30, 40), name="a.jpg"),
        [Panel("twice as large", torch.ones(60, 80, 3))],
    ]
    write_sheet(rows, tmp_path / "sheet.png", panel_width=40)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * (30 + LABEL_HEIGHT_PX + GAP_PX) + GAP_PX, 4 * (40 + GAP_PX) + GAP_PX, 3)
    top = GAP_PX + LABEL_HEIGHT_PX
    assert (sheet[top : top + 30, GAP_PX : GAP_PX + 40] == 51).all()
    assert (sheet[top : top + 30, 2 * GAP_PX + 40 : 2 * GAP_PX + 80] == 153).all()
    second_row = top + 30 + GAP_PX + LABEL_HEIGHT_PX
    assert (sheet[second_row : second_row + 30, GAP_PX : GAP_PX + 40] == 255).all()
    assert sheet[GAP_PX : GAP_PX + LABEL_HEIGHT_PX, GAP_PX : GAP_PX + 40].max() > 200  # the label


def test_empty_sheets_are_refused(tmp_path):
    with pytest.raises(UserError, match="no pictures"):
        write_sheet([[]], tmp_path / "sheet.png")
