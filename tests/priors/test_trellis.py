"""A folder laid out like the published models, from a picture to files; and what is said when something is wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_trellis import CONTEXT, DESCRIPTIONS, red_ball, write_dino, write_trellis

from scene_distill.core.errors import UserError
from scene_distill.core.seeds import torch_generator
from scene_distill.export.mesh_files import read_mesh, write_mesh
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import read_ply, write_ply
from scene_distill.nets.sparse_tensor import Voxels
from scene_distill.nets.strict_loading import load_strictly
from scene_distill.nets.trellis_networks import build_network
from scene_distill.priors import trellis
from scene_distill.priors.flow import FlowSteps, Guidance
from scene_distill.priors.trellis import StructureField, TrellisPrior
from scene_distill.priors.trellis_files import FlowSettings, read_trellis_folder


class Words:
    """A conditioner that makes tokens of a text's letters."""

    def __call__(self, descriptions):
        rows = [torch.randn(5, CONTEXT, generator=torch_generator("words", text)) for text in descriptions]
        return torch.stack(rows)

    def opposite(self):
        return torch.zeros(1, 5, CONTEXT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_trellis(tmp_path_factory.mktemp("models") / "TRELLIS-tiny", "text")


@pytest.fixture
def copied(folder, tmp_path):
    """The folder to spoil."""
    return shutil.copytree(folder, tmp_path / "spoilt")


@pytest.fixture
def prior(folder):
    files = read_trellis_folder(folder)
    return TrellisPrior(files, Words(), files.structure, files.latent)


def test_from_a_picture_to_gaussians_and_mesh_in_files(folder, tmp_path):
    pytest.importorskip("transformers", reason="pictures are read through transformers (extra 'diffusion')")
    models = shutil.copytree(folder, tmp_path / "image-model")
    pipeline = json.loads((models / "pipeline.json").read_text())
    del pipeline["args"]["text_cond_model"]
    pipeline["args"]["image_cond_model"] = "dinov2_vitl14_reg"
    (models / "pipeline.json").write_text(json.dumps(pipeline))
    write_dino(models / "dinov2_vitl14_reg")
    stages = []
    prior = trellis.load_trellis(models).with_settings(watch=lambda *step: stages.append(step))
    made = prior.generate([red_ball()], ("gaussians", "mesh"), seed=3)
    assert stages == [(stage, i, 3) for stage in ("structure", "latent") for i in range(3)]
    assert prior.networks == {}  # every stage gave its memory back
    splats, mesh = made["gaussians"][0], made["mesh"][0].mesh()
    metadata = SplatMetadata(up=trellis.UP)
    write_ply(splats, tmp_path / "object.ply", metadata)
    again, read = read_ply(tmp_path / "object.ply")
    assert len(again) == len(splats) > 0 and len(splats) % 4 == 0 and read.up == trellis.UP
    assert torch.allclose(again.means, splats.means) and splats.means.abs().max() < 0.5 + 1.5 / 32
    assert torch.allclose(again.log_scales, splats.log_scales, atol=1e-5)
    write_mesh(mesh, tmp_path / "object.glb", metadata)
    assert np.abs(mesh.vertices).max() <= 0.5 + 1 / 64 and mesh.colors is not None
    pytest.importorskip("trimesh", reason="reading meshes needs trimesh (extra 'meshes')")
    back, _ = read_mesh(tmp_path / "object.glb")
    assert len(back) == len(mesh) > 0


def test_samples_depend_on_their_seed_and_number_alone(prior):
    described = prior.describe(["a chair"])
    together, alone = prior.sample_structure(described, 5, 2), prior.sample_structure(described, 5)
    first, other = ({tuple(row) for row in places.tolist()} for places in together.places.split(together.counts))
    again = {tuple(row) for row in alone.places.tolist()}
    assert len(first & again) >= 0.97 * len(first | again)
    assert len(first & other) < 0.9 * len(first)
    renoised = FlowSettings(0.0, (0.0, 1.0), FlowSteps(3, sampler="renoise"))
    again = prior.with_settings(structure=renoised, latent=renoised)
    latents = again.structure_latents(described, 5, 2)
    torch.testing.assert_close(latents[:1], again.structure_latents(described, 5), atol=1e-4, rtol=1e-4)
    states, few = again.latent_states(described, together, 5), together.counts[0]
    own = Voxels(together.coords[:few])
    torch.testing.assert_close(states[:few], again.latent_states(described, own, 5), atol=1e-4, rtol=1e-4)
    latent = prior.sample_latent(described, together, 5)
    whole = prior.decode(latent, ("gaussians", "radiance"))
    assert [len(splats) for splats in whole["gaussians"]] == [4 * count for count in together.counts]
    assert [len(field) for field in whole["radiance"]] == together.counts
    points = (together.places[:4] + 0.5) / 16 - 0.5
    density, color = whole["radiance"][0].at(points)
    assert bool((density > 0).all()) and bool(((color > 0) & (color < 1)).all())


def test_the_settings_of_the_folder_are_used_and_can_be_changed(prior):
    assert prior.structure == FlowSettings(2.0, (0.5, 1.0), FlowSteps(3, 3.0))
    described = prior.describe(["a chair", "a chair from behind"])
    calls = []
    network = prior.files.network("sparse_structure_flow_model")
    network.register_forward_hook(lambda *_: calls.append(1))
    given = {"sparse_structure_flow_model": network}
    prior.with_settings(networks=given).sample_structure(described, 0)
    assert len(calls) == 3 * 2 + 3  # t = 1, 6/7, 3/5: all guided, two descriptions and their opposite each
    calls.clear()
    one = FlowSettings(0.0, (0.0, 1.0), FlowSteps(1))
    prior.with_settings(structure=one, combine="cycle", networks=given).sample_structure(described, 0)
    assert len(calls) == 1


def test_flows_hear_their_condition_and_their_time(prior):
    network = prior.files.network("sparse_structure_flow_model")
    x, words = torch.randn(2, 8, 4, 4, 4), Words()(["one", "two"])
    v = StructureField(network)(x, torch.tensor(0.5), words)
    assert not torch.allclose(v, network(x, torch.tensor(0.5), words.flip(0)), atol=1e-4)
    assert not torch.allclose(v, network(x, torch.tensor(0.6), words), atol=1e-4)
    assert torch.allclose(v[1:], network(x[1:], torch.tensor([0.5]), words[1:]), atol=1e-5)
    assert torch.allclose(Guidance((words,)).velocity(network, x, 0.5), v)
    with pytest.raises(ValueError, match="latents of 8 x 4"):
        network(torch.randn(1, 8, 5, 5, 5), torch.tensor(0.5), words)


def test_weights_come_back_as_they_were_written(folder):
    from safetensors.torch import load_file

    stored = load_file(folder / "ckpts" / "slat_flow.safetensors")
    network = read_trellis_folder(folder).network("slat_flow_model")
    assert {value.dtype for value in stored.values()} == {torch.float16, torch.float32}
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, stored[name].float()), name
    half = read_trellis_folder(folder).network("slat_flow_model", dtype=torch.bfloat16)
    assert half.blocks[0].mlp.mlp[0].weight.dtype == torch.bfloat16
    assert half.input_layer.weight.dtype == torch.float32


def test_everything_that_does_not_fit_is_in_one_message(copied):
    from safetensors.torch import load_file, save_file

    path = copied / "ckpts" / "ss_flow.safetensors"
    weights = load_file(path)
    weights["blocks.9.extra"] = weights.pop("blocks.0.mlp.mlp.0.bias")
    weights["out_layer.bias"] = torch.zeros(9)
    save_file(weights, path)
    (copied / "ckpts" / "slat_dec_gs.safetensors").unlink()
    (copied / "ckpts" / "ss_dec.safetensors").write_bytes(b"no weights")
    pipeline = json.loads((copied / "pipeline.json").read_text())
    del pipeline["args"]["models"]["slat_flow_model"]
    (copied / "pipeline.json").write_text(json.dumps(pipeline))
    with pytest.raises(UserError) as caught:
        read_trellis_folder(copied)
    message = str(caught.value)
    assert "names no slat_flow_model" in message
    assert "slat_decoder_gs" in message and "slat_dec_gs with both" in message
    assert "1 missing: blocks.0.mlp.mlp.0.bias; 1 unexpected: blocks.9.extra" in message
    assert "1 misshapen: out_layer.bias is [9] instead of [8]" in message
    assert "sparse_structure_decoder" in message and "ss_dec.safetensors cannot be read" in message


def test_decoders_of_another_folder_are_found_beside_it(folder, tmp_path):
    text, image = tmp_path / "root" / "text-model", tmp_path / "root" / "IMAGE-model"
    shutil.copytree(folder, text)
    (image / "ckpts").mkdir(parents=True)
    for ending in ("json", "safetensors"):
        (text / "ckpts" / f"slat_dec_gs.{ending}").rename(image / "ckpts" / f"slat_dec_gs.{ending}")
    pipeline = json.loads((text / "pipeline.json").read_text())
    pipeline["args"]["models"]["slat_decoder_gs"] = "owner/IMAGE-model/ckpts/slat_dec_gs"
    (text / "pipeline.json").write_text(json.dumps(pipeline))
    assert read_trellis_folder(text).models["slat_decoder_gs"] == image / "ckpts" / "slat_dec_gs"
    elsewhere = shutil.copytree(image, tmp_path / "other" / "owner" / "IMAGE-model")
    shutil.rmtree(image)
    found = read_trellis_folder(text, tmp_path / "other").models["slat_decoder_gs"]
    assert found == elsewhere / "ckpts" / "slat_dec_gs"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda args: args.pop("slat_normalization"), "slat_normalization"),
        (lambda args: args["models"].pop("slat_flow_model"), "names no slat_flow_model"),
        (lambda args: args["models"].update(slat_flow_model="../secret"), "leads out"),
        (lambda args: [args["models"].pop(f"slat_decoder_{kind}") for kind in ("gs", "rf", "mesh")], "none of"),
        (lambda args: args["slat_sampler"]["params"].update(steps=0), "at least 1 step"),
        (lambda args: args.pop("text_cond_model"), "text_cond_model"),
    ],
)
def test_pipelines_that_lack_something_say_what(copied, change, words):
    pipeline = json.loads((copied / "pipeline.json").read_text())
    change(pipeline["args"])
    (copied / "pipeline.json").write_text(json.dumps(pipeline))
    with pytest.raises(UserError, match=words):
        read_trellis_folder(copied)


def test_damaged_numbers_are_found(copied, tmp_path):
    from safetensors.torch import load_file, save_file

    path = copied / "ckpts" / "ss_flow.safetensors"
    weights = load_file(path)
    save_file({**weights, "pos_emb": weights["pos_emb"].flip(0).contiguous()}, path)
    with pytest.raises(UserError, match="pos_emb is off"):
        read_trellis_folder(copied).network("sparse_structure_flow_model")
    bad = {**weights, "out_layer.bias": weights["out_layer.bias"] * torch.nan}
    save_file(bad, tmp_path / "bad.safetensors")
    network = build_network(DESCRIPTIONS["sparse_structure_flow_model"], "here")
    with pytest.raises(UserError, match=r"out_layer\.bias holds numbers that are not finite"):
        load_strictly(network, tmp_path / "bad.safetensors")


def test_asking_for_what_is_not_there(prior, tmp_path):
    with pytest.raises(UserError, match=r"no pipeline\.json"):
        read_trellis_folder(tmp_path)
    with pytest.raises(UserError, match="names no slat_encoder"):
        prior.files.network("slat_encoder")
    with pytest.raises(UserError, match="gaussians, mesh, radiance, not points"):
        prior.decode(None, ("points",))
