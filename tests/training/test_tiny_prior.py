"""The tiny prior: its training goes on bit by bit, learns, and what it saves comes back; its judge and its figures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from scene_distill.cli.main import main
from scene_distill.core.errors import UserError
from scene_distill.core.seeds import torch_generator
from scene_distill.data.captioned_shapes import COLOR_NAMES, SHAPE_NAMES, WORDS
from scene_distill.data.captioned_shapes_pictures import Pictures, PictureSet, render_pictures
from scene_distill.nets.attribute_classifier import retrieved
from scene_distill.priors import tiny
from scene_distill.priors.prior import Counted, NoisePrior
from scene_distill.priors.tiny import load_tiny, read_tiny, save_tiny
from scene_distill.training.attribute_classifier import read_judge, train_judge
from scene_distill.training.picture_networks import Schedule
from scene_distill.training.prior_evaluation import evaluation_shot, feature_distance
from scene_distill.training.prior_packaging import package_prior
from scene_distill.training.prior_settings import JudgeTraining, PriorTraining
from scene_distill.training.tiny_prior import PriorTrainer, caption_numbers, dropped, sampled

SMALL = PriorTraining(size=16, pictures=12, steps=4, batch=4, warmup=1)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return render_pictures(SMALL.picture_set())


def trained(pictures: Pictures, folder: Path, stop_at: int | None = None, resume: bool = False) -> PriorTrainer:
    trainer = PriorTrainer(SMALL, pictures, folder, resume)
    trainer.run(lambda *_: None, 100, stop_at)
    return trainer


@pytest.fixture(scope="module")
def whole(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> PriorTrainer:
    return trained(pictures, tmp_path_factory.mktemp("whole"))


def test_a_training_that_was_stopped_ends_with_the_same_bits(pictures: Pictures, whole: PriorTrainer, tmp_path: Path):
    trained(pictures, tmp_path, stop_at=2)
    resumed = trained(pictures, tmp_path, resume=True)
    assert resumed.fit.step == 4
    for name, value in whole.fit.average.items():
        assert torch.equal(value, resumed.fit.average[name]), name
    assert (whole.folder / "prior.safetensors").read_bytes() == (tmp_path / "prior.safetensors").read_bytes()


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


def test_a_training_that_was_killed_between_checkpoints_ends_with_the_same_bits(
    pictures: Pictures, whole: PriorTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = PriorTrainer(SMALL, pictures, tmp_path, resume=False)
    learn = trainer.fit.learn

    def mortal(loss: torch.Tensor) -> None:
        if trainer.fit.step == 3:
            raise Killed
        learn(loss)

    monkeypatch.setattr(trainer.fit, "learn", mortal)
    with pytest.raises(Killed):
        trainer.run(lambda *_: None, 2)
    with (tmp_path / "prior-log.jsonl").open("a") as log:
        log.write('{"step": 3, "loss": 0.')
    resumed = PriorTrainer(SMALL, pictures, tmp_path, resume=True)
    assert resumed.fit.step == 2, "the last checkpoint, not the last step"
    resumed.run(lambda *_: None, 2)
    for name in ("prior.safetensors", "prior-log.jsonl"):
        assert (whole.folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_a_training_is_not_overwritten_nor_continued_as_another(pictures: Pictures, whole: PriorTrainer):
    with pytest.raises(UserError, match="holds a training already"):
        PriorTrainer(SMALL, pictures, whole.folder, resume=False)
    other = PriorTraining(size=16, pictures=12, steps=4, batch=4, warmup=1, seed=9)
    with pytest.raises(UserError, match="seed 0, not 9"):
        PriorTrainer(other, pictures, whole.folder, resume=True)


def test_held_out_pairs_are_refused_as_training_pictures(tmp_path: Path):
    shown = render_pictures(PictureSet("prior", "held_out", 1, 16, 0))
    with pytest.raises(UserError, match="held-out pairs"):
        PriorTrainer(SMALL, shown, tmp_path, resume=False)


def test_the_loss_falls(pictures: Pictures, tmp_path: Path):
    config = PriorTraining(size=16, pictures=12, steps=40, batch=6, rate=1e-3, warmup=5)
    trainer = PriorTrainer(config, pictures, tmp_path, resume=False)
    before = float(np.mean([float(trainer.loss(1000 + i)[0].detach()) for i in range(4)]))
    for step in range(40):
        trainer.fit.learn(trainer.loss(step)[0])
    after = float(np.mean([float(trainer.loss(1000 + i)[0].detach()) for i in range(4)]))
    assert 0.4 < before < 1.2, "an untrained network predicts v = 0, whose error is the mean square of v"
    assert after < 0.9 * before


def test_the_shipped_size_fits_its_limits():
    count = sum(value.numel() for value in PriorTraining().network().parameters())
    assert 1e6 <= count <= 5e6 and 2 * count <= 12e6


def test_what_is_saved_comes_back(whole: PriorTrainer):
    prior = load_tiny(whole.folder)
    assert isinstance(prior, NoisePrior) and prior.x0_shape == (3, 16, 16)
    z = torch.randn(2, 3, 16, 16, generator=torch_generator(1))
    level = torch.tensor([100, 700])
    prompts = ["a red chair, side view", ""]
    got = Counted(prior).eps(z, level, prior.describe(prompts))
    kept = whole.prior()
    assert got.dtype == torch.float32
    assert torch.allclose(got, kept.eps(z, level, kept.describe(prompts)), atol=2e-2)
    half = load_tiny(whole.folder, dtype=torch.bfloat16)
    assert torch.allclose(got, half.eps(z, level, half.describe(prompts)), atol=5e-2)
    assert read_tiny(whole.folder).about["step"] == 4


def test_prompts_with_unknown_words_are_refused(whole: PriorTrainer):
    prior = whole.prior()
    with pytest.raises(UserError, match=r"does not know the word 'chare' .* did you mean 'chair'"):
        prior.describe(["a red chare"])
    with pytest.raises(UserError, match="10 telling words, the tiny prior reads 8"):
        prior.describe(["red " * 10])
    vocabulary = whole.learned().vocabulary
    numbers = vocabulary.numbers(["A red chair with green legs, side view", ""])
    assert [WORDS[n - 1] for n in numbers[0].tolist() if n] == ["red", "chair", "green", "legs", "side"]
    assert not numbers[1].any()


def test_training_captions_read_as_prompts_do(pictures: Pictures, whole: PriorTrainer):
    captions = [SMALL.picture_set().shot(number).caption for number in range(SMALL.pictures)]
    assert torch.equal(caption_numbers(pictures), whole.learned().vocabulary.numbers(captions))


def test_dropped_words_leave_captions_that_can_be_asked_for():
    words = torch.tensor([[1, 2, 3, 4, 5, 0, 0, 0], [6, 7, 8, 0, 0, 0, 0, 0]]).repeat(400, 1)
    generator = torch_generator(2)
    assert torch.equal(dropped(words, generator, 0, 0, 0), words)
    assert torch.equal(dropped(words, generator, 0, 1, 0)[:2, :5], torch.tensor([[1, 2, 3, 4, 0], [6, 7, 0, 0, 0]]))
    assert torch.equal(dropped(words, generator, 0, 0, 1)[:2, :5], torch.tensor([[2, 3, 4, 5, 0], [7, 8, 0, 0, 0]]))
    assert not dropped(words, generator, 1, 0, 0).any()
    empty = (dropped(words, generator).sum(1) == 0).float().mean()
    assert 0.05 < empty < 0.16


def test_samples_do_not_depend_on_their_batch(whole: PriorTrainer):
    captions = ["a red chair", "a blue car, back view", "a green duck"]
    together = sampled(whole.prior(), captions, 5, steps=3)
    alone = sampled(whole.prior(), captions, 5, steps=3, batch=1)
    assert together.min() >= 0 and together.max() <= 1
    assert torch.allclose(together, alone, atol=1e-3)


def test_damaged_and_foreign_files_are_refused(whole: PriorTrainer, tmp_path: Path):
    with pytest.raises(UserError, match="there is no tiny prior at"):
        read_tiny(tmp_path / "none.safetensors")
    path = tmp_path / "prior.safetensors"
    save_tiny(path, whole.learned())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        read_tiny(path)
    with pytest.raises(UserError, match="cannot be read"):
        (tmp_path / "prior-state.pt").write_bytes(b"nothing")
        PriorTrainer(SMALL, render_pictures(SMALL.picture_set()), tmp_path, resume=True)


def test_a_judge_is_trained_once_and_read_again(tmp_path: Path):
    config = JudgeTraining(size=16, pictures=10, steps=3, batch=4)
    shown = render_pictures(config.picture_set())
    judge = train_judge(config, shown, tmp_path)
    again, about = read_judge(tmp_path)
    images = torch.rand(2, 3, 32, 32, generator=torch_generator(3))
    assert all(torch.equal(judge(images)[name], again(images)[name]) for name in ("color", "view"))
    assert set(about["accuracy"]) == {"color", "shape", "part_color", "view"}
    assert train_judge(config, shown, tmp_path) is not None
    with pytest.raises(UserError, match="other settings"):
        train_judge(JudgeTraining(size=16, pictures=10, steps=4, batch=4), shown, tmp_path)


def test_retrieval_needs_both_words():
    logits = {"color": torch.eye(10)[[3, 3, 4]], "shape": torch.eye(16)[[5, 6, 5]]}
    right = retrieved(logits, torch.tensor([3, 3, 3]), torch.tensor([5, 5, 5]))
    assert right.tolist() == [True, False, False]


def test_the_feature_distance_is_that_of_gaussians():
    a = torch.randn(400, 6, generator=torch_generator(4))
    shift = torch.tensor([1.0, 2, 0, 0, 0, 0])
    assert abs(feature_distance(a, a)) < 1e-6
    assert feature_distance(a, a + shift) == pytest.approx(5, abs=1e-6)
    spread = float(a.double().var(0).sum())
    assert feature_distance(a, 3 * a - 2 * a.mean(0)) == pytest.approx(4 * spread, rel=1e-6)


def test_evaluation_asks_from_clear_views():
    shots = [evaluation_shot(1, number, "held_out") for number in range(30)]
    assert {shot.view for shot in shots} == {"front", "side", "back"}
    assert all(shot.toy.held_out for shot in shots)


def test_a_finished_training_is_packaged_and_found_there(
    whole: PriorTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tiny, "PACKAGED", tmp_path / "weights" / "tiny.safetensors")
    with pytest.raises(UserError, match=r"comes without a trained tiny prior .* 'scene-distill prior train"):
        load_tiny()
    sheets = []

    def package() -> list[Path]:
        return package_prior(whole.folder, tmp_path / "weights", tmp_path / "images", lambda _, to: sheets.append(to))

    with pytest.raises(UserError, match="no attribute classifier"):
        package()
    config = JudgeTraining(size=16, pictures=4, steps=1, batch=2)
    train_judge(config, render_pictures(config.picture_set()), whole.folder)
    made = package()
    assert [path.name for path in made] == [
        "tiny.safetensors", "judge.safetensors", "prior_loss.png", "prior_samples.png"
    ]  # fmt: skip
    assert all(path.exists() for path in made[:3]) and sheets == made[3:]
    assert load_tiny().x0_shape == (3, 16, 16)
    assert made[0].read_bytes() == (whole.folder / "prior.safetensors").read_bytes()


def test_an_unfinished_training_is_not_packaged(pictures: Pictures, tmp_path: Path):
    trained(pictures, tmp_path / "run", stop_at=2)
    config = JudgeTraining(size=16, pictures=4, steps=1, batch=2)
    train_judge(config, render_pictures(config.picture_set()), tmp_path / "run")
    with pytest.raises(UserError, match=r"stands at step 2 of 4; finish it with .* --resume"):
        package_prior(tmp_path / "run", tmp_path / "weights", tmp_path / "images", lambda *_: None)
    assert not (tmp_path / "weights").exists() and not (tmp_path / "images").exists()


def test_the_learning_rate_rises_and_falls():
    schedule = Schedule(1.0, 100, 10)
    rates = [schedule.at(step) for step in range(100)]
    assert rates[0] < 0.2 and max(rates) > 0.95 and rates[-1] < 0.06


def test_the_command_line_trains_measures_describes_and_packages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scene_distill.cli.prior.SHEET_CAPTIONS", ("a red chair",))
    folder = str(tmp_path / "prior")
    sizes = ["--size", "16", "--pictures", "8", "--steps", "2", "--batch", "2", "--judge-pictures", "8"]
    main(["prior", "train", "--output-dir", folder, *sizes, "--judge-steps", "2", "--threads", "1"])
    assert (tmp_path / "prior" / "loss.png").exists() and (tmp_path / "prior" / "samples-000002.png").exists()
    with pytest.raises(SystemExit):
        main(["prior", "train", "--output-dir", folder, *sizes])
    main(["prior", "eval", folder, "--samples", "4", "--steps", "2", "--json", str(tmp_path / "figures.json")])
    main(["prior", "info", folder])
    put = ["--weights-dir", str(tmp_path / "weights"), "--images-dir", str(tmp_path / "images")]
    main(["prior", "package", folder, *put])
    assert len(list((tmp_path / "images").glob("prior_*.png"))) == 2
    out = capsys.readouterr()
    assert "continue it with --resume" in out.err
    assert "held-out" in out.out and "M parameters" in out.out and COLOR_NAMES[0] in out.out
    assert SHAPE_NAMES[0] in out.out and '"r_precision"' in (tmp_path / "figures.json").read_text()
