import math

import numpy as np
import pytest
import torch

from scene_distill.core import spherical_harmonics


def quadrature():
    """Directions and weights exact up to degree 7: Gauss-Legendre in z, uniform in azimuth."""
    z, weights = np.polynomial.legendre.leggauss(4)
    azimuth = (np.arange(8) + 0.5) * 2 * math.pi / 8
    z, azimuth = np.meshgrid(z, azimuth, indexing="ij")
    radius = np.sqrt(1 - z**2)
    directions = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=-1).reshape(-1, 3)
    return torch.from_numpy(directions), torch.from_numpy(np.repeat(weights, 8) * 2 * math.pi / 8)


def test_harmonics_are_orthonormal():
    directions, weights = quadrature()
    values = spherical_harmonics.basis(directions)
    gram = values.T @ (weights[:, None] * values)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=1e-13, rtol=0)


def test_harmonics_equal_scipys_with_the_condon_shortley_phase():
    special = pytest.importorskip("scipy.special")
    directions = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=-1)
    polar, azimuth = np.arccos(directions[:, 2].numpy()), np.arctan2(directions[:, 1].numpy(), directions[:, 0].numpy())

    def complex_harmonic(degree, order):
        if hasattr(special, "sph_harm_y"):
            return special.sph_harm_y(degree, order, polar, azimuth)
        return special.sph_harm(order, degree, azimuth, polar)

    expected = []
    for degree in range(4):
        for order in range(-degree, degree + 1):
            value = complex_harmonic(degree, abs(order))  # contains (-1)^m
            expected.append(value.real if order == 0 else math.sqrt(2) * (value.imag if order < 0 else value.real))
    values = spherical_harmonics.basis(directions)
    np.testing.assert_allclose(values.numpy(), np.stack(expected, axis=-1), atol=1e-12)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_evaluate_is_half_plus_the_sum(degree):
    count = spherical_harmonics.basis_count(degree)
    directions = torch.nn.functional.normalize(torch.randn(20, 3), dim=-1)
    coefficients = torch.randn(20, count, 3)
    expected = 0.5 + torch.einsum("nk,nkc->nc", spherical_harmonics.basis(directions)[:, :count], coefficients)
    torch.testing.assert_close(spherical_harmonics.evaluate(coefficients, directions), expected)


def test_constant_coefficients_give_the_colour_back():
    colors = torch.rand(10, 3)
    directions = torch.nn.functional.normalize(torch.randn(10, 3), dim=-1)
    coefficients = spherical_harmonics.constant_coefficients(colors)
    torch.testing.assert_close(spherical_harmonics.evaluate(coefficients, directions), colors)


@pytest.mark.parametrize("count", [-1, 0, 2, 15, 25])
def test_other_counts_are_refused(count):
    with pytest.raises(ValueError, match="spherical harmonics"):
        spherical_harmonics.degree_of(count)
