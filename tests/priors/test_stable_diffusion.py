"""Latent priors against diffusers' own pipelines, on small random models that the tests save themselves."""

import json
from pathlib import Path

import pytest
import torch

from scene_distill.core.errors import UserError
from scene_distill.core.seeds import torch_generator
from scene_distill.priors.ddim import invert, moved, sample
from scene_distill.priors.guidance import Alone, Guided, PerpNeg
from scene_distill.priors.prior import Counted, NoisePrior, levels_of
from scene_distill.priors.schedules import cosine, scaled_linear
from scene_distill.priors.stable_diffusion import LatentPrior, MicroConditions
from scene_distill.priors.stable_diffusion_files import LatentOptions, load_stable_diffusion, noise_table

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'scene-distill[diffusion]'")
pytest.importorskip("transformers", reason="transformers is not installed: pip install 'scene-distill[diffusion]'")

from tiny_pipelines import save_sd, save_sdxl

PROMPT, NEGATIVE = "a red car", "a blue chair"


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("sd")
    pipeline = save_sd(folder)
    return pipeline, load_stable_diffusion(folder / "model", "sd"), folder / "model"


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("sdxl")
    pipeline = save_sdxl(folder)
    options = LatentOptions(micro=MicroConditions((64, 48), (4, 2), (16, 16)))
    return pipeline, load_stable_diffusion(folder / "model", "sdxl", options), folder / "model"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_generator("latents", seed))


def our_sample(prior: LatentPrior, wanted: str, unwanted: str, scale: float, start: torch.Tensor) -> torch.Tensor:
    prompts = {"wanted": prior.describe([wanted]), "unwanted": prior.describe([unwanted])}
    levels = [timestep - 1 for timestep in (801, 601, 401, 201, 1)]
    return sample(prior, prompts, Guided(scale), start, levels)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() < 2e-4 * theirs.abs().max())


def test_sd_samples_what_its_pipeline_samples(sd):
    pipeline, prior, _ = sd
    start = noise(1, 4, 8, 8)
    theirs = pipeline(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=5, guidance_scale=7.5,
                      latents=start, output_type="latent", height=16, width=16).images  # fmt: skip
    assert close(our_sample(prior, PROMPT, NEGATIVE, 7.5, start), theirs)


def test_sdxl_samples_what_its_pipeline_samples(sdxl):
    pipeline, prior, _ = sdxl
    start = noise(1, 4, 8, 8)
    sizes = {"original_size": (64, 48), "crops_coords_top_left": (4, 2), "target_size": (16, 16)}
    asked = {"num_inference_steps": 5, "guidance_scale": 5.0, "latents": start, "output_type": "latent",
             "height": 16, "width": 16, **sizes}  # fmt: skip
    theirs = pipeline(PROMPT, negative_prompt=NEGATIVE, **asked).images
    assert close(our_sample(prior, PROMPT, NEGATIVE, 5.0, start), theirs)
    assert prior.zero_empty, "SDXL's pipelines take zeros for the empty prompt"
    assert close(our_sample(prior, PROMPT, "", 5.0, start), pipeline(PROMPT, **asked).images)


def test_size_conditions_matter(sdxl):
    _, prior, folder = sdxl
    other = load_stable_diffusion(folder, "sdxl")
    assert other.micro == MicroConditions((16, 16), (0, 0), (16, 16))
    z, level = noise(1, 4, 8, 8), torch.tensor([500])
    assert not torch.equal(prior.eps(z, level, prior.describe([PROMPT])), other.eps(z, level, other.describe([PROMPT])))


def test_v_prediction_is_read_from_the_scheduler(tmp_path: Path):
    pipeline = save_sd(tmp_path, "v_prediction")
    prior = load_stable_diffusion(tmp_path / "model", "sd")
    start = noise(1, 4, 8, 8)
    theirs = pipeline(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=5, guidance_scale=3.0,
                      latents=start, output_type="latent", height=16, width=16).images  # fmt: skip
    assert prior.predicts == "v" and close(our_sample(prior, PROMPT, NEGATIVE, 3.0, start), theirs)


def test_the_protocol_and_the_counter(sd):
    _, prior, _ = sd
    assert isinstance(prior, NoisePrior) and prior.x0_shape == (4, 8, 8)
    counted = Counted(prior)
    z = noise(3, 4, 8, 8).requires_grad_()
    out = counted.eps(z, torch.tensor([0, 500, 999 - 1]), prior.describe([PROMPT, "", NEGATIVE]))
    assert counted.evaluations == 3 and not out.requires_grad and bool(torch.isfinite(out).all())


def test_rows_do_not_depend_on_how_many_pass_at_once(sd):
    _, prior, folder = sd
    single = load_stable_diffusion(folder, "sd", LatentOptions(at_once=1))
    z, level = noise(3, 4, 8, 8), torch.tensor([20, 300, 900])
    condition = prior.describe([PROMPT, NEGATIVE, ""])
    assert torch.allclose(prior.eps(z, level, condition), single.eps(z, level, condition), atol=1e-5)


def test_images_go_through_the_autoencoder_as_through_the_pipeline(sd):
    pipeline, prior, _ = sd
    images = torch.rand(2, 3, 16, 16, generator=torch_generator(1)).requires_grad_()
    latents = prior.encode(images)
    posterior = pipeline.vae.encode(2 * images - 1).latent_dist
    assert torch.allclose(latents, 0.2 * posterior.mode(), atol=1e-6)
    latents.square().sum().backward()
    assert images.grad is not None and bool((images.grad != 0).any())
    drawn = [prior.encode(images, torch_generator(2)) for _ in range(2)]
    assert torch.equal(*drawn) and not torch.allclose(drawn[0], latents)
    decoded = pipeline.vae.decode(latents / 0.2).sample / 2 + 0.5
    assert torch.allclose(prior.decode(latents.detach()), decoded.clamp(0, 1), atol=1e-5)
    assert prior.encode(torch.rand(1, 3, 40, 32)).shape == (1, 4, 8, 8), "other sizes are resampled"


def test_tiles_keep_the_gradient_and_cost_little(sd):
    _, whole, folder = sd
    tiled = load_stable_diffusion(folder, "sd", LatentOptions(tiled=True, size=(48, 48)))
    plain = load_stable_diffusion(folder, "sd", LatentOptions(size=(48, 48)))
    images = torch.rand(1, 3, 48, 48, generator=torch_generator(3)).requires_grad_()
    latents = tiled.encode(images)
    latents.square().sum().backward()
    assert latents.shape == (1, 4, 24, 24) == plain.encode(images.detach()).shape
    assert bool((images.grad.abs().sum(1) > 0).all()), "every pixel reaches the latents"
    assert tiled.decode(latents.detach()).shape == (1, 3, 48, 48)
    assert whole.size == (16, 16)


def test_inversion_and_perp_neg_work_on_latents(sdxl):
    _, prior, _ = sdxl
    prompts = {role: prior.describe([text]) for role, text in
               (("wanted", PROMPT), ("unwanted", ""), ("empty", ""), ("negative 0", NEGATIVE))}  # fmt: skip
    x0 = 0.5 * noise(1, 4, 8, 8, seed=4)
    up = invert(prior, prompts, Alone("empty"), x0, levels_of(0, x0), levels_of(600, x0), 100)
    assert bool(torch.isfinite(up).all()) and float((up - x0).norm()) > 1
    z = up
    for level in range(600, 0, -100):
        here, below = levels_of(level, z), levels_of(level - 100, z)
        z = moved(z, prior.eps(z, here, prompts["empty"]), prior.schedule, here, below)
    assert float((z - x0).norm()) < 0.5 * float((up - x0).norm()), "DDIM down undoes DDIM up but for its step error"
    made = sample(prior, prompts, PerpNeg(5.0, (-1.0,)), noise(1, 4, 8, 8), [800, 400, 0])
    plain = sample(prior, prompts, PerpNeg(5.0, (0.0,)), noise(1, 4, 8, 8), [800, 400, 0])
    assert bool(torch.isfinite(made).all()) and not torch.equal(made, plain)


def test_wrong_models_are_refused_in_one_sentence(sd, sdxl, tmp_path: Path):
    with pytest.raises(UserError, match="there is no folder"):
        load_stable_diffusion(tmp_path / "nothing", "sd")
    with pytest.raises(UserError, match="nor is that model in the local cache"):
        load_stable_diffusion("nobody/no-such-model", "sd")
    with pytest.raises(UserError, match="use it with --prior sdxl"):
        load_stable_diffusion(sdxl[2], "sd")
    with pytest.raises(UserError, match="use it with --prior sd,"):
        load_stable_diffusion(sd[2], "sdxl")
    with pytest.raises(UserError, match="is no diffusers model"):
        load_stable_diffusion(tmp_path, "sd")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(UserError, match="holds a FluxPipeline, which cannot teach"):
        load_stable_diffusion(tmp_path, "sd")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(UserError, match="tokenizer is missing or has no vocab"):
        load_stable_diffusion(tmp_path, "sd")


def test_long_prompts_are_refused(sd):
    with pytest.raises(UserError, match="CLIP reads 16; shorten it"):
        sd[1].describe(["a red car " * 8])


def test_noise_tables():
    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    assert torch.equal(noise_table(settings, "here").abars, scaled_linear().abars)
    assert noise_table(settings, "here").n_levels == 999
    assert torch.equal(noise_table({"beta_schedule": "squaredcos_cap_v2"}, "here").abars, cosine().abars)
    rescaled = noise_table(settings | {"rescale_betas_zero_snr": True}, "here")
    assert len(rescaled.abars) == 999 and float(rescaled.abars[-1]) < 1e-4
    assert float(rescaled.abars[0]) == pytest.approx(float(scaled_linear().abars[0]))
    with pytest.raises(UserError, match="beta_schedule 'sigmoid'"):
        noise_table({"beta_schedule": "sigmoid"}, "here")
