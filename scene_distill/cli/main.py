"""`scene-distill COMMAND`: finds the command, and turns a user's mistake into one sentence."""

from __future__ import annotations

import sys
import time
from importlib import import_module

from scene_distill import __version__
from scene_distill.core.errors import UserError

STARTED = time.perf_counter()
"""When the process began, nearly: nothing but the interpreter came before."""

COMMANDS = {
    "train": ("scene_distill.cli.train", "train a method on a scene"),
    "distill": ("scene_distill.cli.distill", "distil a slow 3D flow into a fast one"),
    "generate": ("scene_distill.cli.generate", "make a 3D object from words"),
    "eval": ("scene_distill.cli.evaluate", "measure a run on its held-out views"),
    "render": ("scene_distill.cli.render", "write pictures of a run's views"),
    "view": ("scene_distill.cli.view", "look at a run or a splat file in a browser"),
    "export": ("scene_distill.cli.export", "write a run or a splat file in another format"),
    "compare": ("scene_distill.cli.compare", "one page about several runs"),
    "follow": ("scene_distill.cli.follow", "hand a run's log to TensorBoard or wandb"),
    "doctor": ("scene_distill.cli.doctor", "check this machine, and a data folder"),
    "data": ("scene_distill.cli.data", "make a procedural scene"),
    "text-to-3d": ("scene_distill.cli.text_to_3d", "make an object from words"),
    "prior": ("scene_distill.cli.prior", "train, measure or describe the tiny text-to-picture prior"),
    "bench": ("scene_distill.cli.bench", "time the kernels on this machine"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command; exits with 0, with 1 after a user's mistake, with 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return
    if arguments[0] == "--version":
        print(f"scene-distill {__version__}")
        return
    command, *rest = arguments
    try:
        if command not in COMMANDS:
            raise UserError(f"there is no command '{command}'; the commands are {', '.join(COMMANDS)}")
        import_module(COMMANDS[command][0]).main(rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\nstopped; what was committed is kept (train continues with --resume)", file=sys.stderr)
        raise SystemExit(130) from None


def _help() -> str:
    lines = ["scene-distill: distillation in 3D, on a laptop or a cluster", "", "usage: scene-distill COMMAND ...", ""]
    lines += [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join([*lines, "", "scene-distill COMMAND --help lists the flags of a command."])
