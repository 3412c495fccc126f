"""Our flat frozen configs as nerfstudio's mutable `TrainerConfig`: same words, same help, same engine behind them.

A generated class has nerfstudio's own fields that mean something here, then every field of the method's config. The
others of nerfstudio's fields are fixed, so that a flag without effect is refused instead of ignored.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import torch
import tyro
import yaml
from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig

from scene_distill.core.configs import RunConfig, from_plain, read_yaml
from scene_distill.core.console import say
from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.methods import METHODS, MethodEntry
from scene_distill.plugins.nerfstudio_data import SceneDatamanagerConfig
from scene_distill.plugins.nerfstudio_errors import one_sentence
from scene_distill.plugins.nerfstudio_model import SceneModelConfig
from scene_distill.plugins.nerfstudio_trainer import Trainer

STAMP = "{timestamp}"
"""Nerfstudio's word for a time stamp that is still to be made."""

MEANINGFUL = ("output_dir", "experiment_name", "timestamp", "machine", "viewer", "vis", "data", "load_config")
"""Fields of nerfstudio's `TrainerConfig` that our trainer heeds."""

SHARED = ("test_every", "test_list")
"""Our fields that nerfstudio's tools need too, to look at the same held-out views."""


@dataclass
class WorkerConfig(MachineConfig):
    """The workers that share the lanes, all on this machine; their device is CUDA where there is one, else the CPU.

    Several machines are torchrun's business: see docs/blocks.md.
    """

    seed: tyro.conf.Fixed[int] = 0
    """the same as --seed"""
    num_devices: int = 1
    """number of workers, the same as --workers; on GPUs one each"""
    num_machines: tyro.conf.Fixed[int] = 1
    """one machine"""
    machine_rank: tyro.conf.Fixed[int] = 0
    """one machine"""
    dist_url: tyro.conf.Fixed[str] = "auto"
    """one machine"""
    device_type: Literal["cpu", "cuda", "mps"] = field(
        default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu"
    )
    """device to use for training"""


def _logging() -> LoggingConfig:
    return LoggingConfig(local_writer=LocalWriterConfig(enable=False), profiler="none")


def _pipeline(method: str) -> VanillaPipelineConfig:
    return VanillaPipelineConfig(datamanager=SceneDatamanagerConfig(), model=SceneModelConfig(method=method))


@dataclass
class RunTrainerConfig(TrainerConfig):
    """A run of our engine under nerfstudio. OUTPUT_DIR/EXPERIMENT/METHOD/TIMESTAMP is the engine's run folder."""

    _target: type = field(default_factory=lambda: Trainer)
    """target class to instantiate"""
    vis: Literal[
        "viewer", "tensorboard", "wandb", "comet", "viewer+tensorboard", "viewer+wandb", "viewer+comet"
    ] = "viewer"  # fmt: skip
    """Who looks on: the viewer, which costs next to nothing while no browser is open, and loggers."""
    machine: WorkerConfig = field(default_factory=WorkerConfig)
    """Where to train"""
    logging: LoggingConfig = field(default_factory=_logging)
    """Logging configuration"""
    viewer: ViewerConfig = field(
        default_factory=lambda: ViewerConfig(
            websocket_host="127.0.0.1", quit_on_train_completion=True, max_num_display_images=64
        )
    )
    """Viewer configuration"""
    optimizers: dict[str, Any] = field(default_factory=dict)
    """None: the engine has its own"""
    config: Path | None = None
    """YAML file with settings; flags given beside it win."""

    if TYPE_CHECKING:  # words of `RunConfig`, which every generated class has
        test_every: int = 8
        test_list: Path | None = None
        image_width: int = 395
        seed: int = 0
        workers: int = 1
        resume: bool = False
        dry_run: bool = False

    @property
    def settings_class(self) -> type:
        """The method's frozen config."""
        return self.entry.config

    @property
    def entry(self) -> MethodEntry:
        """The method that is trained."""
        return METHODS[str(self.method_name)]

    def run_config(self) -> RunConfig:
        """The engine's frozen config, with this run's folder as its output folder.

        ``resume`` is on only where the folder holds a run: one killed before it wrote anything is begun anew.
        """
        kind, folder = self.entry.config, self.get_base_dir()
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(kind)}
        values |= {"output_dir": folder, "resume": values["resume"] and holds_run(folder)}
        return kind(**values)

    def set_timestamp(self) -> None:
        """Settle what is open before the config is saved: the settings file, what nerfstudio's tools share with the
        engine, and the time stamp: the newest run's with --resume, else a new one."""
        with one_sentence():
            self._take_settings_file(sys.argv[1:])
            self._take_workers()
            self._tell_tools()
            self.set_experiment_name()
            if self.timestamp == STAMP and self.resume:
                self._find_run()
            super().set_timestamp()

    def _take_settings_file(self, arguments: list[str]) -> None:
        """Settings of the file ``config`` where no flag in ``arguments`` says otherwise."""
        if self.config is None:
            return
        flags = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in arguments if word.startswith("--")}
        values = read_yaml(self.config)
        loaded: Any = from_plain(self.settings_class, values, str(self.config))
        default = type(self)()
        for name in values:
            if name not in flags and getattr(self, name) == getattr(default, name):
                setattr(self, name, getattr(loaded, name))
        self.config = None

    def _take_workers(self) -> None:
        """Move the number of workers out of nerfstudio's sight: its launcher runs our trainer once, which starts the
        others itself (nerfstudio 1.1.5 starts several processes only where CUDA is)."""
        if self.machine.num_devices != 1:
            if self.workers not in (1, self.machine.num_devices):
                raise UserError(f"--workers {self.workers} and --machine.num-devices {self.machine.num_devices} differ")
            self.workers, self.machine.num_devices = self.machine.num_devices, 1

    def _tell_tools(self) -> None:
        """Let nerfstudio's datamanager see the same photos, at the same size, with the same views held out."""
        if self.data is None and self.pipeline.datamanager.data is None:
            raise UserError("no data given; add --data with a COLMAP folder, a transforms.json or a folder of photos")
        datamanager = self.pipeline.datamanager
        assert isinstance(datamanager, SceneDatamanagerConfig)
        self.data = datamanager.data = self.data or datamanager.data
        datamanager.image_width = self.image_width
        for name in SHARED:
            setattr(datamanager.dataparser, name, getattr(self, name))
        self.machine.seed = self.seed

    def _find_run(self) -> None:
        """Take the time stamp of the newest run of this experiment and method, where there is one."""
        runs = self.get_base_dir().parent
        newest = newest_run(runs)
        if newest is None:
            say(f"there is no run to resume in {runs}; starting one")
        else:
            self.timestamp = newest.name

    def set_experiment_name(self) -> None:
        """Name the experiment after the data folder, also when that is given as '.' or with dots in its name."""
        if self.experiment_name is None and self.data is not None:
            path = self.data.resolve()
            self.experiment_name = path.parent.name if path.is_file() else path.name
        super().set_experiment_name()

    def save_config(self) -> None:
        """Write config.yml, whole or not at all; nothing on a dry run."""
        if self.dry_run:
            return
        with one_sentence():
            path = self.get_base_dir() / "config.yml"
            write_atomically(path, lambda temporary: _write(temporary, yaml.dump(self)))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def holds_run(folder: Path) -> bool:
    """Whether the engine has begun a run in ``folder``."""
    return (folder / "config.yaml").is_file()


def newest_run(folder: Path) -> Path | None:
    """The folder in ``folder`` whose run began last; None when there is none."""
    runs = [path.parent for path in folder.glob("*/config.yaml")]
    return max(runs, key=lambda run: ((run / "config.yaml").stat().st_mtime_ns, run.name), default=None)


class NamedMethod(Protocol):
    """A method by name with its frozen config class."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def config(self) -> type:
        """Its config class."""
        ...

    @property
    def config_class(self) -> str:
        """The name of that class."""
        ...


def trainer_config_class(entry: NamedMethod, module: str, base: type[RunTrainerConfig] = RunTrainerConfig,
                         meaningful: Sequence[str] = MEANINGFUL,
                         pipeline: Callable[[str], VanillaPipelineConfig] = _pipeline,
                         hidden: Sequence[str] = ()) -> type[RunTrainerConfig]:  # fmt: skip
    """A mutable ``base`` with every field of the method's frozen config, to be found by name in ``module``.

    ``data`` and ``output_dir`` keep nerfstudio's types; the latter its meaning too (the parent of all runs). Of
    nerfstudio's fields those in ``meaningful`` can be set; of the config's, all but those in ``hidden``.
    """
    kind, helps = entry.config, field_helps(entry.config)
    helps["output_dir"] = "Parent of all runs; this one goes to OUTPUT_DIR/EXPERIMENT/METHOD/TIMESTAMP."
    own = dataclasses.fields(RunTrainerConfig)
    own_hints, hints = typing.get_type_hints(RunTrainerConfig), typing.get_type_hints(kind)
    fields: dict[str, tuple[Any, Any]] = {
        f.name: (Annotated[own_hints[f.name], tyro.conf.Fixed], _copied(f))
        for f in own
        if f.name not in (*meaningful, "_target", "config")
    }
    for f in dataclasses.fields(kind):
        if f.name in hidden:
            continue
        ours = f.name in ("data", "output_dir")
        hint = own_hints[f.name] if ours else hints[f.name]
        default = next(_copied(o) for o in own if o.name == f.name) if ours else _copied(f)
        fields[f.name] = (Annotated[hint, tyro.conf.arg(help=helps[f.name])], default)
    fields["method_name"] = (fields["method_name"][0], field(default=entry.name))
    fields["pipeline"] = (fields["pipeline"][0], field(default_factory=lambda: pipeline(entry.name)))
    made = dataclasses.make_dataclass(
        entry.config_class.removesuffix("Config") + "TrainerConfig",
        [(name, hint, default) for name, (hint, default) in fields.items()],
        bases=(base,),
        namespace={"__module__": module, "__doc__": kind.__doc__},
    )
    return typing.cast(type[RunTrainerConfig], made)


def _copied(original: dataclasses.Field) -> Any:
    """A new field with the same default."""
    if original.default_factory is not dataclasses.MISSING:
        return field(default_factory=original.default_factory)
    return field(default=original.default)


def field_helps(kind: type) -> dict[str, str]:
    """Help texts of a dataclass and its bases: the string below each field in the source, on one line."""
    helps: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]).body
        for statement, below in zip(body, [*body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = ""
                if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    text = " ".join(str(below.value.value).split())
                helps[statement.target.id] = text
    return helps
