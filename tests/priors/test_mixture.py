import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.core.errors import UserError
from scene_distill.priors.captions import CaptionIndex, words_of
from scene_distill.priors.gaussian import GaussianPrior
from scene_distill.priors.mixture import MixturePrior
from scene_distill.priors.prior import levels_of
from scene_distill.priors.renders import RenderMixture, load_renders, save_renders
from scene_distill.priors.schedules import cosine, scaled_linear

DOUBLE = {"dtype": torch.float64}


def mixture(std: float = 0.35, seed: int = 0) -> MixturePrior:
    centres = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(seed), **DOUBLE)
    weights = {"": torch.full((5,), 0.2, **DOUBLE), "y": torch.tensor([0.0, 0.3, 0.7, 0.0, 0.0], **DOUBLE)}
    return MixturePrior(centres, weights, std, scaled_linear())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.sampled_from(["", "y"]), st.floats(0.05, 1.0), st.integers(0, 9))
def test_noise_is_the_gradient_of_the_log_density(level, prompt, std, seed):
    prior = mixture(std, seed)
    z = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(seed), **DOUBLE).requires_grad_()
    levels, condition = levels_of(level, z), prior.describe([prompt]).repeated(3)
    (gradient,) = torch.autograd.grad(prior.log_density(z, levels, condition).sum(), z)
    expected = -prior.schedule.sigma(levels, z) * gradient
    torch.testing.assert_close(prior.eps(z, levels, condition), expected.detach(), rtol=1e-9, atol=1e-9)


def test_the_density_is_normalised():
    prior = MixturePrior(
        torch.tensor([[-1.0], [2.0]], **DOUBLE), {"": torch.tensor([0.4, 0.6], **DOUBLE)}, 0.3, scaled_linear()
    )
    z = torch.linspace(-8, 9, 4001, **DOUBLE).reshape(-1, 1)
    density = prior.log_density(z, levels_of(300, z), prior.describe([""]).repeated(len(z))).exp()
    assert float(torch.trapezoid(density, z[:, 0])) == pytest.approx(1.0, abs=1e-8)


def test_one_component_is_a_gaussian():
    centre = torch.randn(1, 4, generator=torch.Generator().manual_seed(1), **DOUBLE)
    mixed = MixturePrior(centre, {"": torch.ones(1, **DOUBLE)}, 0.2, cosine())
    single = GaussianPrior({"": centre[0]}, 0.2, cosine())
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(2), **DOUBLE)
    level = torch.tensor([0, 10, 200, 500, 900, 990])
    torch.testing.assert_close(
        mixed.eps(z, level, mixed.describe([""] * 6)),
        single.eps(z, level, single.describe([""] * 6)),
        rtol=1e-12,
        atol=1e-12,
    )


def test_mixing_conditions_mixes_densities():
    prior = mixture()
    z = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(3), **DOUBLE)
    level = levels_of(400, z)
    a, b = prior.describe([""]), prior.describe(["y"])
    expected = torch.log(0.25 * prior.log_density(z, level, a).exp() + 0.75 * prior.log_density(z, level, b).exp())
    torch.testing.assert_close(prior.log_density(z, level, a.mixed(b, 0.75)), expected, rtol=1e-10, atol=1e-10)


def test_weights_that_are_no_distribution_are_refused():
    centres = torch.zeros(2, 3, **DOUBLE)
    for weights in ([0.5, 0.6], [1.5, -0.5], [1.0]):
        with pytest.raises(UserError, match="add up to 1"):
            MixturePrior(centres, {"": torch.tensor(weights, **DOUBLE)}, 0.1, cosine())


COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


def library():
    """Coloured squares and bars, eight pixels high, seen from two sides."""
    images, captions = [], []
    for colour, rgb in COLOURS.items():
        for shape, rows in (("square", slice(2, 6)), ("bar", slice(3, 4))):
            for side, columns in (("front", slice(2, 6)), ("back", slice(0, 4))):
                if (colour, shape) == ("blue", "bar"):
                    continue
                image = torch.ones(3, 8, 8)
                image[:, rows, columns] = torch.tensor(rgb).reshape(3, 1, 1)
                images.append(image)
                captions.append(f"A {colour} {shape}, {side} view")
    return torch.stack(images), captions


def test_a_prompt_means_the_pictures_whose_captions_hold_its_words():
    prior = RenderMixture(*library())
    weights = prior.describe(["a red square", "green", "", "the back view of a red bar"]).pooled
    assert (weights > 0).sum(1).tolist() == [2, 4, 10, 1]
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    assert words_of("A photo of the Red chair, front view!") == ["red", "chair", "front"]


def test_prompts_without_a_picture_are_refused_unless_nearly_will_do():
    with pytest.raises(UserError, match="'purple'"):
        RenderMixture(*library()).describe(["a purple square"])
    with pytest.raises(UserError, match="has all of"):
        RenderMixture(*library()).describe(["a blue bar"])
    nearly = RenderMixture(*library(), partly=True)
    assert int((nearly.describe(["a blue bar"]).pooled > 0).sum()) == 2 + 4
    assert CaptionIndex(["red square"]).matching("").tolist() == [0]


def test_the_truth_of_pictures_is_known():
    images, captions = library()
    prior = RenderMixture(images, captions)
    noisy = (images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(4))).clamp(0, 1)
    number, rms = prior.nearest(noisy)
    assert number.tolist() == list(range(len(images))) and float(rms.max()) < 0.06
    assert prior.truth(images, "red square").tolist() == ["red square" in caption for caption in captions]


def test_the_denoiser_returns_the_meant_picture_from_heavy_noise():
    images, captions = library()
    prior = RenderMixture(images, captions, std=0.02)
    z = 40 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    level = levels_of(prior.schedule.level_of_sigma(40.0), z)
    eps = prior.eps(z, level, prior.describe(["blue square, front view"]))
    clean = prior.decode(z - prior.schedule.sigma(level, z) * eps)
    assert captions[int(prior.nearest(clean)[0])] == "A blue square, front view"
    assert float((clean - images[captions.index("A blue square, front view")]).abs().max()) < 0.02


def test_captioned_renders_survive_a_file(tmp_path):
    images, captions = library()
    save_renders(tmp_path / "renders.safetensors", images, captions)
    again, said = load_renders(tmp_path / "renders.safetensors")
    assert torch.equal(again, images) and said == captions


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", b"junk" * 100])
def test_a_damaged_file_is_one_clear_error(tmp_path, content):
    path = tmp_path / "renders.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no captioned renders"):
        load_renders(path)


def test_images_outside_their_range_are_refused():
    with pytest.raises(UserError, match="between 0 and 1"):
        RenderMixture(2 * torch.ones(1, 3, 4, 4), ["x"])
    with pytest.raises(UserError, match="K captions"):
        RenderMixture(torch.ones(1, 3, 4, 4), ["x", "y"])
