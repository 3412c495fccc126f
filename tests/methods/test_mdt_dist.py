"""The small world end to end: a run of seconds, resumed, shared among workers, distilled again, and used."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scene_distill.blocks.workers import Workers
from scene_distill.cli import main as cli
from scene_distill.core.configs import changed_fields
from scene_distill.core.errors import UserError
from scene_distill.data.shape_shards import ShapeSet, ShapeShard, make_shard
from scene_distill.data.shape_world import prompt_words
from scene_distill.export.mesh_files import read_mesh
from scene_distill.export.ply import read_ply
from scene_distill.methods.mdt_dist import autoencoders, flows, wall_clock
from scene_distill.methods.mdt_dist.autoencoders import LOOKS, SAMPLES, surface_latents
from scene_distill.methods.mdt_dist.config import TESTING, MDTConfig
from scene_distill.methods.mdt_dist.evaluation import (
    Evaluation,
    autoencoding,
    evaluate_walk,
    finite,
    floors,
    gather_truth,
)
from scene_distill.methods.mdt_dist.flows import Batch, Latents, StudentLesson, draw_batch
from scene_distill.methods.mdt_dist.latency import latencies
from scene_distill.methods.mdt_dist.model import ShapeModel, ShapeSizes, StudentNotes, Walk
from scene_distill.methods.mdt_dist.run import MDTRun, open_folder, saved_config, sizes_of
from scene_distill.nets.vector_flow import VectorFlow

PUBLISHED = Path(__file__).parents[2] / "configs" / "mdt_structure_published.yaml"


def train(config):
    open_folder(config)
    return MDTRun(config, Workers()).run()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    train(replace(TESTING, output_dir=folder))
    return folder


@pytest.fixture(scope="module")
def full_model(world, tmp_path_factory):
    """The world's model with structures that fill the cube, so that there is something to decode."""
    model = ShapeModel.load(world)
    with torch.no_grad():
        model.structure_decoder.cell[2].bias += 100
    path = tmp_path_factory.mktemp("full") / "model.safetensors"
    model.save(path, model.about)
    return path


def weights(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "weights").glob("*.safetensors"))}


def test_a_run_leaves_a_model_and_its_logs(world):
    model = ShapeModel.load(world)
    assert set(model.flows) == {(r, f) for r in ("teacher", "student") for f in ("structure", "latent")}
    assert sizes_of(saved_config(world)) == model.sizes
    for stage, every in (("teacher_structure", 8), ("student_latent", 8), ("structure_autoencoder", 6)):
        lines = [json.loads(line) for line in (world / stage / "log.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] >= every and all("loss" in line for line in lines)
    assert any(name.startswith("t 0.") for name in lines[0]) is False
    log = (world / "student_structure" / "log.jsonl").read_text()
    assert '"t 0.' in log and '"matching"' in log
    stages = json.loads((world / "stages.json").read_text())
    assert len(stages) == 8 and set(stages["student_structure"]["bins"]) <= set(flows.BINS.names())
    learning = sum(stage["seconds"] for name, stage in stages.items() if name != "whole")
    assert stages["whole"]["seconds"] > learning
    assert stages["student_latent"]["teacher_evaluations"] == 3 * 6 * -(-8 * 2 // 3)
    assert "output_dir" not in model.about["config"] and str(world) not in json.dumps(model.about)


def test_the_students_start_from_their_teachers_and_leave_them(world):
    model = ShapeModel.load(world)
    pairs = zip(
        model.flow("teacher", "structure").parameters(), model.flow("student", "structure").parameters(), strict=True
    )
    gaps = [float((a - b).abs().max()) for a, b in pairs]
    assert 0 < max(gaps) < 0.05


def train_until(config, lesson, count, monkeypatch):
    """A run that is interrupted when a lesson is asked for a batch after ``count`` others."""
    plain, calls = lesson.outcome, iter(range(1000))

    def failing(self, *arguments):
        if next(calls) == count:
            raise KeyboardInterrupt
        return plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(lesson, "outcome", failing)
        with pytest.raises(KeyboardInterrupt):
            train(config)


@pytest.mark.parametrize("lesson", [autoencoders.StructureLesson, autoencoders.GaussianLesson, flows.FlowLesson])
def test_a_run_stopped_in_any_stage_ends_with_the_same_bytes(world, tmp_path, monkeypatch, lesson):
    config = replace(TESTING, output_dir=tmp_path)
    train_until(config, lesson, 4, monkeypatch)
    assert not (tmp_path / "model.safetensors").exists()
    train(replace(config, resume=True))
    assert weights(tmp_path) == weights(world)


def test_a_student_stopped_anywhere_ends_with_the_same_bytes(world, tmp_path, monkeypatch):
    config = replace(TESTING, output_dir=tmp_path, teacher=str(world), stage="structure")
    train_until(config, StudentLesson, 9, monkeypatch)
    with pytest.raises(UserError, match="add --resume"):
        train(config)
    with pytest.raises(UserError, match="started with --student-rate"):
        train(replace(config, resume=True, student_rate=1.0))
    train(replace(config, resume=True))
    assert weights(tmp_path)["student_structure.safetensors"] == weights(world)["student_structure.safetensors"]
    kept, source = (ShapeModel.load(folder).flow("student", "latent") for folder in (tmp_path, world))
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), source.parameters(), strict=True))


def test_two_workers_learn_the_same_bytes(world, tmp_path):
    flags = ["--output-dir", str(tmp_path), "--workers", "2"]
    for name in changed_fields(MDTConfig(), TESTING):
        flags += [f"--{name.replace('_', '-')}", str(getattr(TESTING, name))]
    command = [sys.executable, "-m", "scene_distill", "distill", "mdt", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("next: scene-distill generate") == 1
    assert weights(tmp_path) == weights(world) and len(weights(world)) == 7, "of every stage"


@pytest.mark.parametrize(
    "switches",
    [
        {"objective": "cm"},
        {"objective": "scm", "derivative": "jvp"},
        {"objective": "pcm"},
        {"vd": 0.1, "vd_from": 0.0, "vd_noise": "reused", "vd_weight": "kl", "vd_guidance": 1.0},
        {"d_norm": True, "times": "logit-normal", "guidance": 2.0},
        {"keep_guidance": True, "guidance": 2.0},
    ],
)
def test_switches_change_what_is_learned(world, switches):
    model, config = ShapeModel.load(world), replace(TESTING, **switches)
    teacher = model.flow("teacher", "structure")

    def outcome(config):
        network = VectorFlow(model.sizes.flow_config("structure"))
        network.load_state_dict(teacher.state_dict())
        files = flows.LatentFiles(world / "latents")
        lesson = StudentLesson(files, "structure", model.whitening, network, teacher, config)
        found = lesson.outcome(lesson.read(0), 32, 0.5, torch.Generator().manual_seed(0))
        found.loss.backward()
        assert all(p.grad is None for p in teacher.parameters())
        return torch.cat([p.grad.reshape(-1) for p in network.parameters() if p.grad is not None]), found.figures

    changed, figures = outcome(config)
    plain, _ = outcome(TESTING)
    assert torch.isfinite(changed).all() and float((changed - plain).norm()) > 1e-3 * float(plain.norm())
    assert ("distillation" in figures) == bool(config.vd)


def test_guidance_is_baked_in_or_kept(world):
    model = ShapeModel.load(world)
    teacher = model.flow("teacher", "structure")
    words = torch.tensor([[1], [2]])
    x, t = torch.randn(2, 64), torch.tensor([0.3, 0.7])
    batch = Batch(x, words, None, x, torch.Generator())
    guided = batch.bound(teacher, 2.0)(x, t)
    with_words, without = teacher(x, t, words), teacher(x, t, 0 * words)
    torch.testing.assert_close(guided, 3 * with_words - 2 * without)
    walk = Walk(3, guidance=2.0, role="teacher")
    one = model.walk("structure", words, None, walk, 0, range(2))
    assert not torch.equal(one, model.walk("structure", words, None, replace(walk, guidance=0.0), 0, range(2)))


def test_words_are_left_out_as_often_as_asked():
    data = Latents(torch.zeros(50, 4), torch.ones(50, 3, dtype=torch.int64), None)
    words = draw_batch(data, 20000, 0.3, 0.1, torch.Generator().manual_seed(0)).words
    assert float((words.sum(1) == 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert float((words[:, 1] == 0).float().mean()) == pytest.approx(0.3 + 0.7 * 0.1, abs=0.01)
    assert float((words[:, 0] == 0).float().mean()) == pytest.approx(0.1, abs=0.01)


def test_samples_do_not_depend_on_their_company(world):
    model = ShapeModel.load(world)
    words = torch.tensor([prompt_words("a table"), prompt_words("a red mug")])
    both = model.sample(words, Walk(2), 3)
    alone = model.sample(words[1:], Walk(2), 3, first=1)
    torch.testing.assert_close(both.structure_state[1:], alone.structure_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_an_object_depends_on_its_own_noise_alone(world, sampler):
    model, walk = ShapeModel.load(world), Walk(3, sampler, role="student")
    words = torch.ones(5, 1, dtype=torch.int64)
    together = model.walk("structure", words, None, walk, 3, range(5))
    apart = [model.walk("structure", words[n:m], None, walk, 3, range(n, m)) for n, m in ((0, 1), (1, 3), (3, 5))]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_latents_are_means_of_what_the_encoder_was_trained_to_see():
    """Several draws of as many samples as in training, not one of more, and the same for all who ask."""
    counts = []

    def encoder(index, distance, color):
        counts.append(index.shape[1])
        return torch.full((len(index), 2), float(len(counts))), None

    shard = make_shapes(2)
    found = surface_latents(encoder, shard, torch.arange(2), torch.Generator().manual_seed(0))
    assert counts == [SAMPLES] * LOOKS and torch.equal(found, torch.full((2, 2), (1 + LOOKS) / 2))


def make_shapes(count):
    return ShapeShard(32, **make_shard(ShapeSet("train", count), 0))


def test_a_student_can_be_the_teacher_of_the_next_and_a_changed_teacher_is_noticed(world, tmp_path):
    one = replace(TESTING, teacher=str(world), stage="structure", student_steps=2, output_dir=tmp_path / "one")
    train(one)
    two = replace(one, teacher=str(one.output_dir), stage="latent", output_dir=tmp_path / "two")
    model = train(two)
    kept = ShapeModel.load(one.output_dir).flow("student", "structure")
    pairs = zip(kept.parameters(), model.flow("student", "structure").parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    path = one.output_dir / "model.safetensors"
    path.write_bytes((world / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="has changed"):
        open_folder(replace(two, resume=True))
    path.unlink()
    with pytest.raises(UserError, match="finish that run first"):
        open_folder(replace(two, output_dir=tmp_path / "three"))
    assert not (tmp_path / "three").exists()


def test_the_teachers_evaluations_are_counted(world):
    files, count = flows.LatentFiles(world / "latents"), []
    model = ShapeModel.load(world)
    teacher = model.flow("teacher", "structure")

    class Counted(torch.nn.Module):
        def forward(self, x, *rest):
            count.append(len(x))
            return teacher(x, *rest)

    for switches in ({}, {"vd": 1.0}, {"vd": 1.0, "guidance": 2.0}, {"guidance": 2.0, "keep_guidance": True}):
        config = replace(TESTING, **switches)
        network = VectorFlow(model.sizes.flow_config("structure"))
        lesson = StudentLesson(files, "structure", model.whitening, network, Counted(), config)
        data = lesson.read(0)
        count.clear()
        for step in range(7):
            lesson.outcome(data, 4, step / 7, torch.Generator().manual_seed(step))
        assert sum(count) == lesson.teacher_evaluations(7, 4)


@pytest.mark.parametrize("objective", ["cm", "pcm"])
def test_consistency_has_gradients_of_velocity_matchings_size(world, objective):
    model = ShapeModel.load(world)
    network = VectorFlow(model.sizes.flow_config("structure"))
    files = flows.LatentFiles(world / "latents")

    def gradient(config):
        lesson = StudentLesson(files, "structure", model.whitening, network, model.flow("teacher", "structure"), config)
        loss = lesson.outcome(lesson.read(0), 32, 0.5, torch.Generator().manual_seed(0)).loss
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(network.parameters()))])

    divided = gradient(replace(TESTING, objective=objective))
    published = gradient(replace(TESTING, objective=objective, per_delta=False))
    torch.testing.assert_close(divided, published / TESTING.delta)
    assert 0.1 < float(divided.norm() / gradient(TESTING).norm()) < 2


def test_weights_fit_into_ten_megabytes():
    sizes = ShapeSizes()
    model = ShapeModel(sizes)
    for role in ("teacher", "student"):
        for flow in ("structure", "latent"):
            model.flows[role, flow] = VectorFlow(sizes.flow_config(flow))
    assert 2 * sum(tensor.numel() for tensor in model.tensors().values()) < 10e6


def test_generate_writes_what_opens_elsewhere(full_model, tmp_path, capsys):
    arguments = ["generate", "--model", str(full_model), "--output-dir", str(tmp_path), "--prompt", "a red chair"]
    cli.main([*arguments, "--steps", "2", "--count", "2", "--threads", "1"])
    printed = capsys.readouterr().out
    assert "student, 2 renoise steps" in printed and "next: scene-distill view" in printed
    splats, metadata = read_ply(tmp_path / "a-red-chair-0-1.ply")
    assert len(splats) == 32**3 - 30**3 and metadata.up == (0, 0, 1)
    mesh, _ = read_mesh(tmp_path / "a-red-chair-0-0.glb")
    assert len(mesh) > 1000 and abs(mesh.vertices).max() < 0.6 and mesh.colors is not None
    first = (tmp_path / "a-red-chair-0-0.ply").read_bytes()
    cli.main(["generate", "a red chair", *arguments[1:-2], "--steps", "2", "--format", "ply", "--threads", "1"])
    assert (tmp_path / "a-red-chair-0-0.ply").read_bytes() == first
    capsys.readouterr()
    cli.main([*arguments, "--format", "glb", "--threads", "1"])
    printed = capsys.readouterr().out
    assert f"next: scene-distill view {tmp_path / 'a-red-chair-0-0.glb'}" in printed and "the whole command" in printed


def test_students_of_phases_take_a_step_for_each(world, tmp_path, capsys):
    config = replace(TESTING, teacher=str(world), objective="pcm", phases=2, student_steps=2, keep_guidance=True)
    one = train(replace(config, stage="latent", output_dir=tmp_path / "one"))
    assert one.student == StudentNotes(2, guided=False), "the structure's keeps nothing, the surface's goes in phases"
    train(replace(config, teacher=str(tmp_path / "one"), stage="structure", output_dir=tmp_path / "both"))
    model = ShapeModel.load(tmp_path / "both")
    assert model.student == StudentNotes(2, guided=True)
    with torch.no_grad():
        model.structure_decoder.cell[2].bias += 100
    model.save(tmp_path / "full.safetensors", model.about)
    arguments = ["generate", "a table", "--model", str(tmp_path / "full.safetensors"), "--output-dir", str(tmp_path)]
    cli.main([*arguments, "--guidance", "1", "--threads", "1"])
    assert "student, 2 euler steps" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--steps", "3", "--threads", "1"])
    assert "distilled in 2 phases" in capsys.readouterr().err


def test_one_student_leads_to_the_other(world, tmp_path, capsys):
    """A world with one student names the command that makes the other."""
    path, run = tmp_path / "alone", tmp_path / "run"
    shutil.copytree(world, path)
    model = ShapeModel.load(path)
    del model.flows["student", "structure"], model.flows["student", "latent"]
    model.save(path / "model.safetensors", model.about)
    flags = ["--teacher", str(path), "--stage", "structure", "--output-dir", str(run), "--shards", "3"]
    cli.main(["distill", "mdt", *flags, "--student-steps", "1", "--batch", "4"])
    assert f"distill mdt --teacher {run} --stage latent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--prompt", "a dragon"], "should name one object"),
        (["--prompt", "a table", "--steps", "0"], "at least 1 step"),
        (["--prompt", "a table", "--count", "0"], "--count is 0"),
        (["--prompt", "a table", "--guidance", "1"], "did not keep it"),
        (["--prompt", "a table", "--model", "nowhere"], "no model at nowhere"),
    ],
)
def test_generate_refuses(full_model, flags, complaint, capsys):
    model = [] if "--model" in flags else ["--model", str(full_model)]
    with pytest.raises(SystemExit):
        cli.main(["generate", *model, *flags])
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["mdt", "--lanes", "0"], "--lanes is 0"),
        (["mdt", "--delta", "0.9"], "--delta is 0.9"),
        (["mdt", "--objective", "pcm", "--phases", "0"], "--phases is 0"),
        (["mdt", "--vd", "1", "--objective", "cm"], "--vd goes with"),
        (["mdt", "--unsaid", "2"], "share between 0 and 1"),
        (["mdt", "--teacher", "nowhere", "--output-dir", "{}"], "there is no folder nowhere"),
        (["mdt", "--teacher", "{}", "--output-dir", "{}/run"], "no run of"),
        (["other"], "no method 'other'"),
        (["mdt", "--config", "nowhere.yaml"], "cannot read the config file nowhere.yaml"),
        (["mdt", "--config", str(PUBLISHED), "--width", "5"], "--width is 5"),
    ],
)
def test_distill_refuses(flags, complaint, capsys, tmp_path):
    with pytest.raises(SystemExit):
        cli.main(["distill", *(flag.format(tmp_path) for flag in flags)])
    assert complaint in capsys.readouterr().err


def test_a_damaged_model_is_refused(world, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((world / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged"):
        ShapeModel.load(path)
    ShapeModel.load(world).flow("student", "latent")
    with pytest.raises(UserError, match="no student of the latent flow"):
        ShapeModel(ShapeSizes()).flow("student", "latent")


def test_figures_of_a_walk(world):
    model, how = ShapeModel.load(world), Evaluation(24, 8)
    run = MDTRun(replace(saved_config(world), output_dir=world), Workers())
    truth = gather_truth(model, run.files, run.shapes, world / "shapes", how)
    lowest = floors(model, truth, how)
    assert 0 <= autoencoding(model, truth, how)["overlap"] <= 1
    found = evaluate_walk(model, truth, Walk(2), how)
    assert found["evaluations"] == 4 and found["frechet_surface"] > 0
    assert set(lowest) - {"frechet_voxels_raw"} == set(found) - {
        "evaluations", "noise", "overlap_with_fine", "chamfer_with_fine", "rmse_with_fine",
    }  # fmt: skip
    for seed in (0, 1):
        fine = evaluate_walk(model, truth, Walk(200, role="teacher"), how, seed, surface=False)
        assert fine["overlap_with_fine"] == 1 and fine["rmse_with_fine"] == pytest.approx(0, abs=1e-5)
        assert fine["evaluations"] == 200
    other = evaluate_walk(model, truth, Walk(2), how, 1)
    assert other["rmse_with_fine"] == found["rmse_with_fine"]
    assert other["frechet_structure"] != found["frechet_structure"]
    assert "rmse_with_fine" not in evaluate_walk(model, truth, Walk(2, "renoise"), how, surface=False)
    assert finite({"a": 1.0, "b": float("nan"), "c": float("inf")}) == {"a": 1.0}


def test_latencies_are_of_every_walk_and_threads_stay(world):
    model, threads = ShapeModel.load(world), torch.get_num_threads()
    found = latencies(model, torch.tensor([[1, 0, 0]]), [Walk(25, role="teacher"), Walk(1)], 2)
    assert len(found) == 2 and all(s["flows"] > 0 and s["decoding"] > 0 for s in found)
    assert torch.get_num_threads() == threads


def test_the_wall_clock_counts_on(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(wall_clock.time, "monotonic", lambda: now[0])
    path = tmp_path / "clock.json"
    clock = wall_clock.WallClock(path)
    now[0] += 5
    clock.tick()
    assert clock.seconds == 5 and not path.exists()
    now[0] += 6
    clock.tick()
    now[0] += 1000
    again, silent = wall_clock.WallClock(path), wall_clock.WallClock(path, kept=False)
    now[0] += 2
    silent.write()
    assert json.loads(path.read_text()) == {"seconds": 11.0}
    again.write()
    assert json.loads(path.read_text()) == {"seconds": 13.0}


def test_costs_name_every_stage(world):
    from scene_distill.methods.mdt_dist.costs import measured_costs

    costs = list(measured_costs(TESTING))
    assert [cost.stage for cost in costs] == [
        "objects", "structure_autoencoder", "surface_autoencoder", "gaussian_decoder",
        "teacher_structure", "student_structure", "teacher_latent", "student_latent",
    ]  # fmt: skip
    assert all(cost.seconds > 0 for cost in costs) and MDTConfig().shapes == 6144
    again = list(measured_costs(MDTConfig(teacher=str(world), batch=4)))
    assert [cost.stage for cost in again] == ["student_structure", "student_latent"]
    assert [cost.parameters for cost in again] == [costs[5].parameters, costs[7].parameters], "of the world's width"
