"""`scene-distill view RUN|FILE|-`."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from scene_distill.core.console import say, say_next
from scene_distill.core.errors import UserError

if TYPE_CHECKING:
    from scene_distill.viewer.access import Access
    from scene_distill.viewer.sessions import Session

NICE = 10
"""Priority that the viewer gives away beside a run in training, which should not wait for it."""

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class View:
    """Look at a run, finished or in training, at a splat file or at a mesh, in a browser.

    Through SSH: `ssh -L 7007:localhost:7007 MACHINE`, then open http://localhost:7007 here.
    """

    what: tyro.conf.Positional[str]
    """Run folder, splat file, mesh (.glb, .obj, .ply), or - for a file on standard input."""
    port: int = 7007
    """Port to listen on; 0 takes a free one."""
    host: str = "127.0.0.1"
    """Address to listen on; another one than this machine's own needs --token."""
    token: str = ""
    """Secret that a browser must bring; 'new' makes one and prints it."""
    data: Path | None = None
    """Data folder, when it has moved since training."""
    films: Path | None = None
    """Folder for films; default: renders/films in the run folder, or films beside the file."""
    threads: int = 0
    """CPU threads for drawing; 0 takes all."""
    format: Annotated[str, tyro.conf.arg(metavar="EXTENSION")] = ""
    """Of a file on standard input, such as ply or spz; found in its first bytes where it is not given."""


def main(arguments: list[str]) -> None:
    """Serve until Ctrl-C."""
    options = tyro.cli(View, args=arguments, prog="scene-distill view")
    from scene_distill.training.loop import use_native_threads
    from scene_distill.viewer.access import Access, checked_token

    if not 0 <= options.port <= 65535:
        raise UserError(f"--port {options.port} is no port; choose one from 0 to 65535")
    access = Access(checked_token(options.host, options.token))
    use_native_threads(options.threads)
    session, films = opened(options)
    try:
        asyncio.run(_serve(options, session, access, films))
    except KeyboardInterrupt:
        say("viewer stopped")


def opened(options: View) -> tuple[Session, Path]:
    """The session and the folder for its films."""
    from scene_distill.training.control import training_state
    from scene_distill.viewer.file_sessions import open_file
    from scene_distill.viewer.sessions import open_session

    if options.what == "-":
        with tempfile.TemporaryDirectory() as folder:
            session: Session = open_file(_standard_input(Path(folder), options.format), "standard input")
        return session, options.films or Path("films")
    path = Path(options.what)
    if path.is_dir() and (training_state(path) or {}).get("state") in ("training", "paused") and hasattr(os, "nice"):
        os.nice(NICE)
    films = options.films or (path / "renders" / "films" if path.is_dir() else path.parent / "films")
    return open_session(path, options.data), films


def _standard_input(folder: Path, extension: str) -> Path:
    """Standard input as a file with the extension of its format."""
    source = sys.stdin.buffer
    first = source.read(READ_BYTES)
    path = folder / f"input.{extension.lstrip('.') or kind_of(first)}"
    with path.open("wb") as file:
        while first:
            file.write(first)
            first = source.read(READ_BYTES)
    return path


def kind_of(first: bytes) -> str:
    """Extension of a file by its first bytes; what has no mark of its own is a .splat."""
    if first.startswith(b"ply"):
        return "compressed.ply" if b"packed_position" in first[:4096] else "ply"
    marks = {b"\x1f\x8b": "spz", b"NGSP": "spz", b"PK": "sog", b"glTF": "glb", b"{": "gltf", b"<": "html"}
    return next((kind for mark, kind in marks.items() if first.startswith(mark)), "splat")


async def _serve(options: View, session: Session, access: Access, films: Path) -> None:
    from scene_distill.cli.runs import data_flag
    from scene_distill.viewer.server import ViewerServer

    async with ViewerServer(session, access, films).running(options.host, options.port) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        name = "localhost" if options.host in ("127.0.0.1", "::1", "0.0.0.0") else options.host
        query = f"/?token={access.token}" if access.token else ""
        say(f"viewing {session.title}: http://{name}:{port}{query}    (Ctrl-C stops)")
        if options.host in ("127.0.0.1", "::1", "localhost"):
            say(f"from another machine: ssh -L {port}:localhost:{port} THIS-MACHINE, then open that address there")
        if Path(options.what).is_dir():
            again = f"{options.what} --format ply{data_flag(options.data)}"
            say_next(f"scene-distill export {again}", "a splat file for other programs")
        else:
            say_next("scene-distill view RUN", "a run, also while it trains")
        await asyncio.get_running_loop().create_future()
