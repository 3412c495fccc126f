import numpy as np
import pytest
import torch

from scene_distill.core.cameras import Camera, look_at
from scene_distill.export.refine import RefineSettings, refine_bake
from scene_distill.renderers.splat import render
from scene_distill.representations.splats import Splats
from scene_distill.training.metrics import psnr

CAMERAS = [
    Camera(56, 48, 60.0, 60.0, 28.0, 24.0, look_at(np.array([x, y, 4.0]), np.zeros(3), np.array([0.0, 1, 0])))
    for x in (-1.5, 0.0, 1.5)
    for y in (-1.0, 1.0)
]


def teacher_and_student(bases):
    generator = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    teacher = Splats(
        means=normal(80, 3) * torch.tensor([1.0, 0.8, 0.3]),
        log_scales=0.3 * normal(80, 3) - 1.5,
        quats=normal(80, 4),
        opacity_logits=normal(80) + 1,
        sh=torch.cat([normal(80, 1, 3), 0.1 * normal(80, bases - 1, 3)], dim=1),
    )
    student = Splats(
        teacher.means + 0.02 * normal(80, 3),
        teacher.log_scales + 0.1 * normal(80, 3),
        teacher.quats + 0.1 * normal(80, 4),
        teacher.opacity_logits + 0.5 * normal(80),
        teacher.sh + 0.2 * normal(80, bases, 3),
    )
    return teacher, student


def look(splats, camera):
    return render(splats.gaussians(camera), camera).image


def mean_psnr(splats, teacher):
    return np.mean([psnr(look(splats, camera), look(teacher, camera)) for camera in CAMERAS])


@pytest.mark.parametrize("bases", [1, 4])
def test_student_approaches_the_teacher_and_inputs_stay(bases):
    teacher, student = teacher_and_student(bases)
    before = student.sh.clone(), mean_psnr(student, teacher)
    losses = []
    settings = RefineSettings(steps=120)
    refined = refine_bake(
        student, CAMERAS, lambda camera: look(teacher, camera), settings, lambda _, loss: losses.append(loss)
    )
    assert torch.equal(student.sh, before[0])
    assert len(losses) == 120 and np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])
    assert mean_psnr(refined, teacher) > before[1] + 4
    assert refined.sh.shape == student.sh.shape and not refined.sh.requires_grad


def test_the_same_seed_gives_the_same_splats():
    teacher, student = teacher_and_student(4)
    runs = [
        refine_bake(student, CAMERAS, lambda camera: look(teacher, camera), RefineSettings(steps=8)) for _ in range(2)
    ]
    assert torch.equal(runs[0].means, runs[1].means) and torch.equal(runs[0].sh, runs[1].sh)


def test_what_no_camera_sees_is_left_alone():
    teacher, student = teacher_and_student(1)
    behind = Splats(
        torch.tensor([[0.0, 0.0, 50.0]]), torch.zeros(1, 3), torch.ones(1, 4), torch.zeros(1), torch.ones(1, 1, 3)
    )
    both = Splats.cat([student, behind])
    refined = refine_bake(both, CAMERAS, lambda camera: look(teacher, camera), RefineSettings(steps=5))
    assert torch.equal(refined.means[-1], behind.means[0]) and torch.equal(refined.sh[-1], behind.sh[0])
    assert not torch.equal(refined.sh[0], student.sh[0])
