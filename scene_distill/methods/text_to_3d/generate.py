"""Objects from prompts: the one entry point of the command line, the plugins, and benchmarks.

    objects = text_to_3d(find_text_method("dreamer-xl"), config, ["a red chair"], prior, Path("outputs/chair"))

The run folder holds config.yaml, log.jsonl (one line a step), checkpoint/, and objects/00-a-red-chair/ with the trained
object. A run that was stopped goes on with ``config.resume`` and ends with the same bytes, on any number of workers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from scene_distill.blocks.runtime import Progress, Runtime
from scene_distill.blocks.workers import Workers
from scene_distill.methods.text_to_3d.config import TextTo3DConfig
from scene_distill.methods.text_to_3d.method import TextTo3D, bound
from scene_distill.methods.text_to_3d.registry import TextMethod
from scene_distill.methods.text_to_3d.representation import TrainedObject
from scene_distill.priors.prior import NoisePrior
from scene_distill.training.loop import use_native_threads
from scene_distill.training.run_folder import RunFolder


@dataclass(frozen=True, eq=False)
class MadeObject:
    """A trained object: its prompt, its number in the run, its folder, and what it cost.

    ``evaluations``: pictures that the prior's network (and a VSD's own) looked at. ``finite``: whether all of its
    numbers are; an object that is not has diverged.
    """

    prompt: str
    unit: int
    folder: Path
    trained: TrainedObject
    evaluations: int
    finite: bool


Listener = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class ObjectsRun:
    """A run that is ready to train: its method bound to prompts and prior, its runtime, its folder."""

    name: str
    made: TextTo3D
    runtime: Runtime
    folder: RunFolder

    def begin(self) -> None:
        """Open the run folder, or with ``config.resume`` take up its last commit. Every worker calls it."""
        if self.runtime.workers.rank == 0:
            self.folder.open(self.made.config, self.name)
        if self.made.config.resume:
            self.runtime.resume()
        if self.runtime.workers.rank == 0:
            self.folder.rewind_log(self.runtime.next_round)

    def train(self, listen: Listener = lambda progress: None, committed: Callable[[], None] = lambda: None) -> None:
        """Train what is left of the schedule; every worker calls it, on worker 0 both functions are called."""

        def hear(progress: Progress) -> None:
            self.folder.append(_line(progress))
            listen(progress)

        self.runtime.run(hear, committed)

    def trained(self, unit: int) -> TrainedObject:
        """A unit's object as of the last commit."""
        return self.made.trained(self.runtime.states()[unit]())

    def finished(self, unit: int) -> MadeObject:
        """The object of a unit, saved."""
        state = self.runtime.states()[unit]()
        trained, prompt = self.made.trained(state), self.made.prompts[unit]
        folder = objects_folder(self.folder.path, unit, prompt)
        trained.save(folder / "object.safetensors")
        held = [tensor for name, tensor in state.items() if name.startswith("object.") and tensor.is_floating_point()]
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in held)
        return MadeObject(prompt, unit, folder, trained, int(state["evaluations"]), finite)


def prepare_objects(method: TextMethod, config: TextTo3DConfig, prompts: Sequence[str], prior: NoisePrior, folder: Path,
                    workers: Workers | None = None, device: torch.device | None = None) -> ObjectsRun:  # fmt: skip
    """Bind a method to prompts and prior; nothing is written yet, `ObjectsRun.begin` is next.

    ``device``: a GPU where there is one. Raises UserError for a prompt that the prior cannot know.
    """
    workers = workers if workers is not None else Workers()
    use_native_threads(config.threads or workers.place.cores)
    config = replace(config, prompts=tuple(prompts), resume=config.resume or workers.place.restarted)
    made = bound(config, prompts, prior, method.recipe, device)
    run = RunFolder(folder)
    return ObjectsRun(method.name, made, Runtime(made, made.rounds, run.checkpoint, workers=workers), run)


def text_to_3d(
    method: TextMethod,
    config: TextTo3DConfig,
    prompts: Sequence[str],
    prior: NoisePrior,
    folder: Path,
    listen: Listener = lambda progress: None,
    workers: Workers | None = None,
    device: torch.device | None = None,
) -> list[MadeObject]:
    """Train an object per prompt into ``folder`` and return them, in order; on workers other than 0 an empty list.

    ``listen`` hears of every lockstep step; objects are trained on ``device`` (default: a GPU where there is one),
    where the prior should be too. Raises UserError where the folder holds a run and ``config.resume`` is off, where
    settings have changed, or for a prompt that the prior cannot know.
    """
    run = prepare_objects(method, config, prompts, prior, folder, workers, device)
    run.begin()
    run.train(listen)
    if run.runtime.workers.rank > 0:
        return []
    return [run.finished(unit) for unit in range(len(run.made.prompts))]


def objects_folder(folder: Path, unit: int, prompt: str) -> Path:
    """objects/<number>-<prompt> in a run folder."""
    return folder / "objects" / f"{unit:02d}-{slug(prompt)}"


def slug(prompt: str) -> str:
    """The prompt as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "object"


def _line(progress: Progress) -> dict[str, object]:
    units = {str(unit): numbers for unit, numbers in progress.lanes}
    return {"round": progress.round, "step": progress.done_steps, "units": units}
