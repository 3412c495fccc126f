import math

import numpy as np
import pytest
import torch

from scene_distill.training import metrics


def picture(height=40, width=50, seed=0):
    """A smooth random picture in [0.1, 0.9]."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 6, 7, generator=generator, dtype=torch.float64)
    large = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear", align_corners=True)
    return 0.1 + 0.8 * large[0].permute(1, 2, 0)


def test_psnr_of_a_constant_difference():
    photo = picture()
    assert metrics.psnr(photo + 0.1, photo) == pytest.approx(20.0)
    assert metrics.psnr(photo, photo) == metrics.MAX_PSNR_DB


def test_ssim_is_one_only_for_equal_images():
    photo = picture()
    assert float(metrics.ssim(photo, photo)) == pytest.approx(1.0, abs=1e-12)
    assert float(metrics.ssim(photo.flip(0), photo)) < 0.9


def test_ssim_equals_a_written_out_window_sum():
    render, photo = picture(13, 14, seed=1).numpy(), picture(13, 14, seed=2).numpy()
    axis = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(axis, axis) / axis.sum() ** 2
    values = []
    for channel in range(3):
        x, y = np.pad(render[..., channel], 5), np.pad(photo[..., channel], 5)
        for row in range(13):
            for column in range(14):
                a, b = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
                covariance = (window * a * b).sum() - mean_a * mean_b
                top = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
                values.append(top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    found = float(metrics.ssim(torch.from_numpy(render), torch.from_numpy(photo)))
    assert found == pytest.approx(np.mean(values), abs=1e-12)


def test_ssim_is_differentiable():
    render = picture(12, 12, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda image: metrics.ssim(image, picture(12, 12)), (render,), fast_mode=True)


def test_colour_correction_undoes_a_quadratic_camera():
    render = picture()
    r, g, b = render.unbind(-1)
    photo = torch.stack([0.1 + 0.7 * r + 0.1 * r * g, 0.8 * g**2 + 0.1 * b, 0.05 + 0.3 * b + 0.4 * b * r], dim=-1)
    assert metrics.psnr(render, photo) < 30
    assert metrics.psnr(metrics.color_correct(render, photo), photo) > 80


def test_colour_correction_ignores_saturated_pixels():
    render, photo = picture(), 0.8 * picture()
    photo[:, :10] = 1.0  # blown out in the photo: no information about the colour curve
    corrected = metrics.color_correct(render, photo)
    torch.testing.assert_close(corrected[:, 10:], photo[:, 10:], atol=1e-5, rtol=0)


def test_colour_correction_of_flat_or_saturated_renders_stays_finite():
    photo = picture()
    grey = torch.full_like(photo, 0.4)
    corrected = metrics.color_correct(grey, photo)
    torch.testing.assert_close(corrected, photo.mean((0, 1)).expand_as(photo), atol=1e-6, rtol=0)
    black = torch.zeros_like(photo)
    torch.testing.assert_close(metrics.color_correct(black, photo), black)


def test_shrinking_costs_detail_only():
    checkerboard = ((torch.arange(64)[:, None] + torch.arange(64)) % 2).double()[..., None].expand(-1, -1, 3)
    assert metrics.shrink_psnr(checkerboard) == pytest.approx(-10 * math.log10(0.25), abs=1e-6)
    assert metrics.shrink_psnr(torch.full((33, 50, 3), 0.3)) == metrics.MAX_PSNR_DB
    assert metrics.shrink_psnr(picture(80, 96)) > 25


def test_measure_clips_and_gives_raw_first():
    photo = picture()
    render = photo.clone()
    render[0, 0] = 7.0
    found = metrics.measure(render, photo)
    assert list(found) == ["psnr", "ssim", "psnr_corrected", "ssim_corrected"]
    assert found["psnr"] > 30


def test_summary_has_means_and_sample_deviations():
    summary = metrics.summarise([{"psnr": 20.0, "ssim": 0.5}, {"psnr": 24.0, "ssim": 0.7}])
    assert list(summary) == ["psnr", "psnr_std", "ssim", "ssim_std"]
    assert summary["psnr"] == 22.0 and summary["psnr_std"] == pytest.approx(math.sqrt(8))
    assert summary["ssim"] == pytest.approx(0.6)
    assert metrics.summarise([{"psnr": 20.0}])["psnr_std"] == 0.0


def test_summary_refuses_empty_or_uneven_lists():
    for images in ([], [{"psnr": 1.0}, {"ssim": 1.0}]):
        with pytest.raises(ValueError):
            metrics.summarise(images)
