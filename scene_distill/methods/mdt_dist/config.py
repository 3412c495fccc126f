"""The settings of the small world's teachers and of their distillation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

ObjectiveName = Literal["vm", "cm", "scm", "pcm"]

TINY = "tiny-shapes"
"""The teacher that is trained here, on shapes that make themselves."""


@dataclass(frozen=True)
class MDTConfig:
    """Few-step 3D flows: a student learns the marginal-data transport of a rectified flow (MDT-dist).

    With the teacher `tiny-shapes` the run makes its world, trains autoencoders and flows for structure and surface, and
    distils both flows. With a run folder it takes that run's networks and only distils. With a folder of TRELLIS models
    it samples them and distils their flows; of the sizes below `shapes` to `visit` and those of students count.
    """

    teacher: str = TINY
    """tiny-shapes, the folder of a run whose teachers are distilled again, or a folder of TRELLIS models."""
    describe: Path | None = None
    """What a TRELLIS teacher makes samples of, for its students to learn from: a file with a text a line, or a folder
    of pictures with transparency, whichever it reads."""
    models_root: Path | None = None
    """Where other published folders lie that a TRELLIS folder names; default: beside it."""
    conditioner: Path | None = None
    """Folder of the DINOv2 or CLIP model that a TRELLIS folder wants; default: looked for beside it."""
    stage: Literal["both", "structure", "latent"] = "both"
    """Which flow is distilled: the structure's, the surface latents', or both. The other keeps the student that a run
    given as teacher has."""
    output_dir: Path = Path("outputs/tiny-shapes")
    """Run folder."""

    shapes: int = 6144
    """Objects to learn from."""
    shards: int = 12
    """Shards they are cut into (K): the units; any number from 1."""
    lanes: int = 2
    """Shards trained on side by side (L); any number from 1. An update's batch is lanes times batch."""
    workers: int = 1
    """Processes on this machine that share the lanes (N); any number from 1. Results do not depend on it. Leave it at 1
    under torchrun, which counts for itself."""
    batch: int = 64
    """Objects a lane's step looks at."""
    visit: int = 100
    """Steps of a shard on a lane; a visit ends with a commit."""
    seed: int = 0
    """Seed of every random number of the run."""

    structure_steps: int = 2500
    """Updates of the structure autoencoder."""
    surface_steps: int = 4500
    """Updates of the surface autoencoder and its mesh decoder."""
    gaussian_steps: int = 4000
    """Updates of the Gaussian decoder, from pictures."""
    teacher_steps: int = 12000
    """Updates of every flow."""
    student_steps: int = 8000
    """Updates of every student."""
    width: int = 256
    """Width of the structure flow; the surface flow has three quarters."""
    depth: int = 4
    """Residual blocks of a flow."""
    highest_frequency: float = 64.0
    """Highest angular frequency of the flows' time embedding per unit of t; TRELLIS's, fed 1000 t, is 1000."""
    autoencoder_rate: float = 2e-3
    """Highest learning rate of autoencoders and decoders."""
    teacher_rate: float = 1e-3
    """Highest learning rate of flows."""
    student_rate: float = 1.5e-4
    """Highest learning rate of students (published, for 1.1 billion parameters: 4e-8 and 1e-8)."""
    ema: float = 0.998
    """Decay of the moving average of weights (published: 0.9999)."""
    clip: float = 1.0
    """Largest gradient norm."""
    clip_window: int = 1000
    """Student's gradient norms whose 95th percentile clips too; 0: none."""

    objective: ObjectiveName = "vm"
    """vm: velocity matching; cm, scm, pcm: consistency distillation, its continuous form, its phased form."""
    vd: float = 0.0
    """Weight of velocity distillation beside vm (published: 1; it can diverge at usual learning rates)."""
    vd_from: float = 0.25
    """Fraction of the updates after which velocity distillation sets in (published: 0)."""
    vd_weight: Literal["code", "paper", "kl"] = "code"
    """Factor of its gradient: 2 (published code), 1 - t (paper), (1 - t)^2 / t (KL)."""
    vd_noise: Literal["fresh", "reused"] = "fresh"
    """Noise its samples get: their own (paper) or velocity matching's again (published code)."""
    derivative: Literal["difference", "jvp"] = "difference"
    """Total derivative of the student by finite difference, or exactly."""
    delta: float = 0.01
    """Step of the finite difference, and of consistency distillation."""
    d_norm: bool = False
    """Divide the derivative by its norm + 0.1 (published code; not in the paper)."""
    per_delta: bool = True
    """cm, pcm: divide the loss by delta (published: no). Gradients point where they did and have vm's size, so that
    clipping and Adam's epsilon treat all objectives alike."""
    tangent_norm: bool = True
    """scm: divide the tangent by its root-mean-square + 0.1."""
    phases: int = 2
    """pcm: number of phases."""
    times: Literal["uniform", "logit-normal"] = "uniform"
    """How t is drawn: U(0, 1) (paper) or sigmoid(N(1, 1)) (published code)."""
    guidance: float = 0.0
    """w of the teacher's velocity (1 + w) v_words - w v_nothing (published: 40)."""
    vd_guidance: float = 0.0
    """The same in velocity distillation (published: 100)."""
    keep_guidance: bool = False
    """Distil the unguided flow with and without words, so that the student can be guided when it is sampled; otherwise
    the teacher's guidance is baked in."""
    unsaid: float = 0.3
    """Share of colours that training leaves out of the words, so that 'a table' means any table."""
    dropped: float = 0.1
    """Share of conditions that flows (and students that keep guidance) see without any word."""

    reduction: Literal["ordered", "all-reduce"] = "ordered"
    """Sum of gradients: in lane order, the same bits on any number of workers; or all-reduce, equal to rounding."""
    worker_timeout: float = 600.0
    """Seconds that a worker waits for another before it gives up."""
    threads: int = 1
    """CPU threads of each worker. Weights agree bit by bit only for the same number."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in the run folder from its last commit."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the stages and what they cost on this machine, then stop."""

    @property
    def walked_phases(self) -> int:
        """Steps that bring a student from noise to data: one, but one for every phase of pcm, with Euler."""
        return self.phases if self.objective == "pcm" else 1


TESTING = MDTConfig(
    shapes=32, shards=3, lanes=2, batch=6, visit=3, structure_steps=6, surface_steps=6, gaussian_steps=3,
    teacher_steps=8, student_steps=8, width=32, depth=2, clip_window=4,
)  # fmt: skip
"""Sizes that run through in seconds and learn nothing."""
