"""Pictures and texts as conditions: the crop, the tokens, and folders that hold something else."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import make_text_model, make_tokenizer
from tiny_trellis import CONTEXT, red_ball, write_dino

from scene_distill.core.errors import UserError
from scene_distill.priors.trellis_conditions import (
    IMAGE_MEAN,
    IMAGE_STD,
    conditioner_folder,
    load_image_conditioner,
    load_text_conditioner,
    object_picture,
)


def test_the_object_is_centred_on_black_with_a_margin():
    picture = object_picture(red_ball())
    assert picture.shape == (3, 518, 518)
    seen = (picture[0] > 0.1).numpy()
    rows, columns = np.nonzero(seen)
    for along in (rows, columns):
        assert abs((along.min() + along.max()) / 2 - 258.5) < 12
        assert (along.max() - along.min()) * 1.2 == pytest.approx(518, rel=0.1)  # soft edges
    assert picture[:, 0].max() == 0 and picture[1:].max() < 0.02


def test_objects_at_the_border_are_cut_out_too():
    wide = np.zeros((20, 60, 4), np.uint8)
    wide[:10, :50] = 255
    picture = object_picture(Image.fromarray(wide))
    assert picture.shape == (3, 518, 518) and picture.max() == 1


@pytest.mark.parametrize(
    ("mode", "color", "words"),
    [("RGB", (9, 9, 9), "no transparency"), ("RGBA", (9, 9, 9, 255), "opaque"), ("RGBA", (9, 9, 9, 0), "transparent")],
)
def test_pictures_without_an_object_are_refused(mode, color, words):
    with pytest.raises(UserError, match=f"the picture .*{words}"):
        object_picture(Image.new(mode, (8, 8), color))


def test_tokens_are_those_before_the_last_norm_normalised_alone(tmp_path):
    pytest.importorskip("transformers", reason="pictures are read through transformers (extra 'diffusion')")
    conditioner = load_image_conditioner(write_dino(tmp_path / "dino"))
    with torch.no_grad():  # a last norm that would show
        conditioner.model.layernorm.weight.fill_(3.0)
        conditioner.model.layernorm.bias.fill_(1.0)
    tokens = conditioner([red_ball(), red_ball(70)])
    assert tokens.shape == (2, 1374, CONTEXT) and not torch.allclose(tokens[0], tokens[1], atol=1e-3)
    assert tokens.mean(-1).abs().max() < 1e-5 and torch.allclose(
        tokens.var(-1, unbiased=False), torch.ones(()), atol=0.01
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    model = conditioner.model
    with torch.no_grad():
        last = model(((object_picture(red_ball()) - mean) / std)[None]).last_hidden_state
    assert torch.allclose(last[0], 3 * tokens[0] + 1, atol=1e-3)  # the model's own norm of the same tokens
    assert torch.equal(conditioner.opposite(), torch.zeros(1, 1374, CONTEXT))


def test_texts_are_clips_last_layer_and_the_empty_text_is_their_opposite(tmp_path):
    pytest.importorskip("transformers", reason="texts are read through transformers (extra 'diffusion')")
    tokenizer = make_tokenizer(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    make_text_model(tokenizer, 16, False).save_pretrained(tmp_path / "clip")
    conditioner = load_text_conditioner(tmp_path / "clip")
    tokens = conditioner(["a red car", "a chair"])
    assert tokens.shape == (2, 16, 16) and torch.equal(conditioner.opposite(), conditioner([""]))
    with pytest.raises(UserError, match="tokens"):
        conditioner(["a red car " * 20])
    with pytest.raises(UserError, match=r"clip.*not DINOv2"):
        load_image_conditioner(tmp_path / "clip")


def test_a_conditioner_is_looked_for_in_known_places(tmp_path):
    models = tmp_path / "TRELLIS"
    models.mkdir()
    with pytest.raises(UserError, match=r"dinov2_vitl14_reg.*dinov2-with-registers-large.*save_pretrained"):
        conditioner_folder("dinov2_vitl14_reg", models, None, None)
    there = tmp_path / "dinov2-with-registers-large"
    there.mkdir()
    (there / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    assert conditioner_folder("dinov2_vitl14_reg", models, None, None) == there
    clip = models / "clip-vit-large-patch14"
    clip.mkdir()
    (clip / "config.json").write_text("{}")
    assert conditioner_folder("openai/clip-vit-large-patch14", models, None, None) == clip
    with pytest.raises(UserError, match="elsewhere"):
        conditioner_folder("openai/clip-vit-large-patch14", models, None, tmp_path / "elsewhere")
    pytest.importorskip("transformers", reason="pictures are read through transformers (extra 'diffusion')")
    (there / "config.json").write_text(json.dumps({"model_type": "dinov2_with_registers"}))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_image_conditioner(there)


def test_without_transformers_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for load in (load_image_conditioner, load_text_conditioner):
        with pytest.raises(UserError, match=r"pip install 'scene-distill\[diffusion\]'"):
            load(tmp_path)
