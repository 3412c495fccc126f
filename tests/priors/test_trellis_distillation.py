"""`scene-distill distill mdt` with a folder laid out like the published TRELLIS models, to files of its students."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_trellis import Words
from tiny_trellis import CONTEXT, red_ball, write_dino, write_trellis

from scene_distill.blocks.workers import Workers
from scene_distill.cli import generate_trellis
from scene_distill.cli import main as cli
from scene_distill.cli.generate import Generate
from scene_distill.core.errors import UserError
from scene_distill.export.ply import read_ply
from scene_distill.methods.mdt_dist import trellis
from scene_distill.methods.mdt_dist.config import MDTConfig
from scene_distill.methods.mdt_dist.run import open_folder
from scene_distill.methods.mdt_dist.trellis import ROLES, TrellisLesson, TrellisRun, check_trellis
from scene_distill.methods.mdt_dist.trellis_samples import SampleFiles, read_descriptions
from scene_distill.priors.flow import FlowSteps, Guidance, sample
from scene_distill.priors.trellis import LatentField, StructureField, TrellisPrior
from scene_distill.priors.trellis_files import read_trellis_folder

SMALL = dict(shapes=4, shards=2, lanes=2, batch=2, visit=2, student_steps=4, clip_window=0, guidance=2.0)
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_trellis(tmp_path_factory.mktemp("models") / "TRELLIS-tiny", "text")


@pytest.fixture
def config(folder, tmp_path, monkeypatch):
    """A run on texts, whose conditioner needs no library."""
    (tmp_path / "texts.txt").write_text("a chair\n\na table\na lamp\n")

    def opened(teacher, *rest):
        files = read_trellis_folder(folder)
        return TrellisPrior(files, Words(), files.structure, files.latent)

    monkeypatch.setattr(trellis, "load_trellis", opened)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "config.json").write_text("{}")
    return MDTConfig(
        teacher=str(folder),
        describe=tmp_path / "texts.txt",
        conditioner=tmp_path / "words",
        output_dir=tmp_path / "run",
        seed=3,
        **SMALL,  # type: ignore[arg-type]
    )


def trained(config):
    open_folder(config)
    return TrellisRun(config, Workers()).run()


def weights(run):
    return {path.name: path.read_bytes() for path in sorted((run / "weights").glob("*.safetensors"))}


def test_pictures_become_students_and_students_make_files(tmp_path, capsys):
    pytest.importorskip("transformers", reason="pictures are read through transformers (extra 'diffusion')")
    teacher = write_trellis(tmp_path / "TRELLIS-image")
    write_dino(teacher / "dinov2_vitl14_reg")
    (tmp_path / "pictures").mkdir()
    red_ball().save(tmp_path / "pictures" / "ball.png")
    run = tmp_path / "run"
    flags = ["--teacher", str(teacher), "--describe", str(tmp_path / "pictures"), "--output-dir", str(run), *FLAGS]
    cli.main(["distill", "mdt", *flags])
    assert "generate --model" in capsys.readouterr().out
    picture = str(tmp_path / "pictures" / "ball.png")
    cli.main(["generate", "--model", str(run), "--image", picture, "--output-dir", str(tmp_path / "made")])
    assert "2 steps of two flows" in capsys.readouterr().out, "one of each"
    assert len(read_ply(tmp_path / "made" / "ball-0-0.ply")[0]) > 0
    before, after = (read_trellis_folder(place) for place in (teacher, run))
    assert set(after.models) == set(before.models)
    assert after.structure.steps == after.latent.steps == FlowSteps(1, 1.0, "renoise") and after.structure.weight == 0
    for role, stem in before.models.items():
        old, new = (load_file(f"{path}.safetensors") for path in (stem, after.models[role]))
        moved = any(not torch.equal(old[name].float(), new[name].float()) for name in old)
        assert moved == (role in ROLES.values()), role
    with pytest.raises(SystemExit):
        cli.main(["distill", "mdt", *flags])
    assert "already holds a run" in capsys.readouterr().err


def test_a_run_that_was_killed_ends_with_the_same_bytes(config, tmp_path, monkeypatch):
    whole = weights(trained(config))
    outcome, calls = TrellisLesson.outcome, []

    def killed(self, *rest):
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return outcome(self, *rest)

    monkeypatch.setattr(TrellisLesson, "outcome", killed)
    other = replace(config, output_dir=tmp_path / "again", resume=True)
    with pytest.raises(KeyboardInterrupt):
        trained(other)
    assert not (tmp_path / "again" / "pipeline.json").exists()
    assert weights(trained(other)) == whole and set(whole) == {
        "student_structure.safetensors", "student_latent.safetensors"}  # fmt: skip


def test_one_stage_leaves_the_other_flow_alone(config, folder):
    run = trained(replace(config, stage="structure"))
    files = read_trellis_folder(run)
    assert files.latent == read_trellis_folder(folder).latent and files.structure.steps.steps == 1
    shard = SampleFiles(run / "samples", 4, 2).read(0, latents=False)
    assert shard.voxels is None and len(shard) == 2


def test_a_batch_of_sparse_objects_is_its_objects(config):
    run = trained(config)
    shard = SampleFiles(run / "samples", 4, 2).read(1)
    assert shard.voxels is not None and shard.described.tolist() == [1, 0], "objects 2 and 3: texts 2 and 0"
    network = read_trellis_folder(run).network(ROLES["latent"])
    rows = torch.tensor([1, 0])
    voxels, features = shard.sparse(rows)
    tokens, t = shard.conditions(rows), torch.tensor([0.3, 0.8])
    together = LatentField(network, voxels)(features, t, tokens)
    for item, row in enumerate(rows):
        alone, own = shard.sparse(row[None])
        assert torch.equal(own, features[voxels.item == item])
        one = LatentField(network, alone)(own, t[item : item + 1], tokens[item : item + 1])
        torch.testing.assert_close(one, together[voxels.item == item], atol=1e-4, rtol=1e-4)


def test_a_structure_student_comes_nearer_to_the_teachers_path(config, folder):
    settings = dict(stage="structure", student_steps=120, visit=60, batch=4, student_rate=2e-3, ema=0.9, guidance=0.0)
    run = trained(replace(config, **settings))
    shard = SampleFiles(run / "samples", 4, 2).read(0, latents=False)
    fields = [StructureField(read_trellis_folder(place).network(ROLES["structure"])) for place in (folder, run)]
    tokens = shard.conditions(torch.tensor([0])).expand(8, -1, -1)
    noise = torch.randn(8, *shard.structure.shape[1:], generator=torch.Generator().manual_seed(5))

    def ends(field: StructureField, steps: int) -> torch.Tensor:
        return sample(field, noise, Guidance((tokens,)), FlowSteps(steps))

    fine = ends(fields[0], 50)
    teacher, student = ((ends(field, 1) - fine).square().mean().sqrt() for field in fields)
    assert float(student) < 0.9 * float(teacher)


def test_what_cannot_be_distilled_is_refused(folder, config, tmp_path, capsys):
    def complaint(*flags):
        with pytest.raises(SystemExit):
            cli.main(["distill", "mdt", "--output-dir", str(tmp_path / "none"), *flags])
        return capsys.readouterr().err

    teacher = ["--teacher", str(folder), "--conditioner", str(config.conditioner)]
    described = [*teacher, "--describe", str(config.describe)]
    assert "--describe" in complaint(*teacher)
    assert "reads texts" in complaint(*teacher, "--describe", str(tmp_path))
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "not even a line" in complaint(*teacher, "--describe", str(tmp_path / "empty.txt"))
    assert "bake it in with --guidance 2" in complaint(*described)
    assert "every shard needs" in complaint(*described, "--guidance=2", "--shapes=1")
    assert "jvp" in complaint(*described, "--guidance=2", "--derivative=jvp")
    assert "would write over" in complaint(*described, "--guidance=2", "--output-dir", str(folder))
    assert "reads the condition" in complaint(*teacher[:2], "--describe", str(config.describe))
    assert "is for TRELLIS models" in complaint("--describe", str(config.describe))
    assert "there is no folder" in complaint("--teacher", str(tmp_path / "nowhere"))
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="reads pictures"):
        read_descriptions(tmp_path / "empty.txt", "image")


def test_students_of_phases_walk_them_and_keep_their_guidance(config):
    """The folder says Euler's steps, one a phase, and refuses others; kept guidance stays the teacher's."""
    run = trained(replace(config, objective="pcm", phases=2, keep_guidance=True, guidance=0.0))
    for settings in (read_trellis_folder(run).structure, read_trellis_folder(run).latent):
        assert settings.steps == FlowSteps(2, 1.0, "euler") and settings.interval == (0.0, 1.0)
        assert (settings.phases, settings.guided, settings.weight) == (2, True, 2.0)
    with pytest.raises(UserError, match="a student already"):
        check_trellis(replace(config, teacher=str(run), output_dir=run.parent / "again"))
    baked = trained(replace(config, output_dir=run.parent / "baked"))
    changed = generate_trellis._changed
    settings = read_trellis_folder(run).structure
    assert changed(settings, Generate(steps=4)).steps == FlowSteps(4, 1.0, "euler")
    with pytest.raises(UserError, match="distilled in 2 phases"):
        changed(settings, Generate(steps=3))
    with pytest.raises(UserError, match="did not keep it"):
        changed(read_trellis_folder(baked).structure, Generate(guidance=1.0))


def test_students_are_not_distilled_as_flows(config):
    run = trained(replace(config, stage="structure"))
    again = replace(config, teacher=str(run), output_dir=run.parent / "again")
    with pytest.raises(UserError, match="a student already"):
        check_trellis(again)
    check_trellis(replace(again, stage="latent"))


def test_memory_is_saved_without_changing_gradients(folder):
    found = []
    for recompute in (False, True):
        network = read_trellis_folder(folder).network(ROLES["structure"]).requires_grad_(True)
        network.recompute = recompute
        x = torch.randn(2, 8, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        loss = network(x, torch.tensor([0.2, 0.9]), torch.ones(1, 5, CONTEXT)).square().sum()
        found.append(torch.autograd.grad(loss, list(network.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("what", ["pipeline", "describe"])
def test_a_teacher_that_changed_is_noticed(config, folder, tmp_path, what):
    copied = shutil.copytree(folder, tmp_path / "copy")
    run = replace(config, teacher=str(copied))
    open_folder(run)
    if what == "describe":
        config.describe.write_text("a lamp\n")
    else:
        pipeline = json.loads((copied / "pipeline.json").read_text())
        pipeline["args"]["slat_sampler"]["params"]["steps"] = 9
        (copied / "pipeline.json").write_text(json.dumps(pipeline))
    with pytest.raises(UserError, match="has changed"):
        open_folder(replace(run, resume=True))
