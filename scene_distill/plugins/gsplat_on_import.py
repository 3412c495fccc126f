"""SCENE_DISTILL_GSPLAT=1 for any program: the stand-ins are installed when the program has imported gsplat.

The distribution puts scene_distill_gsplat.pth beside the package; Python runs its one line at start. With the variable
unset it compares one string. With it set it imports this module, which is small on purpose, and `watch` puts a finder
in front of the import system. The finder waits for ``import gsplat``, takes itself out, and lets gsplat's own loader
run; after it `plugins.gsplat.install` does the work. What goes wrong there is printed; the program goes on with gsplat
as it is.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def watch() -> None:
    """Install the stand-ins when gsplat is imported, or now if it is; a second call changes nothing."""
    if "gsplat" in sys.modules:
        _install()
    elif not any(isinstance(finder, GsplatFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, GsplatFinder())


class GsplatFinder(MetaPathFinder):
    """Finds gsplat where the other finders find it, with a loader that installs the stand-ins afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """gsplat's own spec with the loader exchanged; None for every other module, and where there is no gsplat."""
        if fullname != "gsplat" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)
            return None
        spec.loader = _InstallingLoader(spec.loader)
        return spec


class _InstallingLoader(Loader):
    """gsplat's own loader, and `install` after it; the module keeps no trace of it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _install()


def _install() -> None:
    try:
        from scene_distill.plugins import gsplat

        gsplat.install()
    except Exception as error:  # a program must not die of an environment variable
        print(f"error: SCENE_DISTILL_GSPLAT=1 could not be followed: {error}", file=sys.stderr)
