"""nerfstudio's own splatfacto on a machine without a GPU, for SCENE_DISTILL_GSPLAT=1.

Splatfacto's code is not replaced; five obstacles in front of it are moved, and only where there is no CUDA device:

- `rasterization`, which its module has bound long before: `plugins.gsplat.install` rebinds it;
- two ``.cuda()``: `torch.Tensor.cuda` returns the tensor itself when it is splatfacto's module that calls;
- one function of four lines under `torch.compile`, which costs half a minute and a C++ compiler: it runs as written;
- LPIPS, whose constructor downloads 230 MB: where the weights are not in torch's cache, it is left out of the metrics;
- ``--machine.device-type``: its default becomes cpu for the methods whose model is splatfacto's.

And with or without a GPU, one: torch ≥ 2.6 refuses to load what nerfstudio's schedulers leave in a checkpoint, numpy's
scalars. New checkpoints get plain numbers, and the loader is told that such scalars in old ones are harmless.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.engine import schedulers
from nerfstudio.models import splatfacto
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from scene_distill.core.console import say
from scene_distill.core.errors import UserError
from scene_distill.plugins import gsplat


def install() -> None:
    """Let nerfstudio's splatfacto methods train and load on this machine; a second call changes nothing.

    Raises `UserError` when gsplat is not installed.
    """
    gsplat.install()
    accept_numpy_scalars()
    for kind in (schedulers.ExponentialDecayScheduler, schedulers.CosineDecayScheduler):
        _wrap(kind, "get_scheduler", _with_plain_rates)
    if torch.cuda.is_available():
        return
    methods = importlib.import_module("nerfstudio.configs.method_configs").method_configs
    for config in methods.values():
        if isinstance(getattr(config.pipeline, "model", None), splatfacto.SplatfactoModelConfig):
            config.machine.device_type = "cpu"
    _wrap(Tensor, "cuda", _staying_on_the_cpu)
    splatfacto.get_viewmat = inspect.unwrap(splatfacto.get_viewmat)
    if not lpips_weights().is_file():
        _wrap(splatfacto.SplatfactoModel, "populate_modules", _without_lpips)
        _wrap(splatfacto.SplatfactoModel, "get_image_metrics_and_images", _without_lpips_among_metrics)


def install_or_say() -> None:
    """`install`, for nerfstudio's start, which a plugin must not break: what is wrong is printed."""
    try:
        install()
    except UserError as error:
        say(f"error: {error}")


def accept_numpy_scalars() -> None:
    """Let `torch.load` accept numpy's float64 scalars, which are numbers and run no code."""
    reconstruct: Any = np.float64(0).__reduce__()[0]
    torch.serialization.add_safe_globals([reconstruct, np.dtype, type(np.dtype(np.float64))])


def lpips_weights() -> Path:
    """Where torch keeps the weights of the AlexNet that LPIPS looks through, once they are downloaded."""
    from torchvision.models import AlexNet_Weights

    return Path(torch.hub.get_dir()) / "checkpoints" / AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]


def _wrap(owner: type, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put ``around(method)`` in the method's place, unless it is there already."""
    method = getattr(owner, name)
    if getattr(method, "__module__", None) != __name__:
        wrapped = around(method)
        functools.update_wrapper(wrapped, method, assigned=("__name__", "__doc__"), updated=())
        setattr(owner, name, wrapped)


def _with_plain_rates(get_scheduler: Callable[..., Any]) -> Callable[..., Any]:
    def plain(self: Any, optimizer: torch.optim.Optimizer, lr_init: float) -> LRScheduler:
        scheduler = get_scheduler(self, optimizer, lr_init)
        if isinstance(scheduler, LambdaLR):
            scheduler.lr_lambdas = [_plain_factor(factor) for factor in scheduler.lr_lambdas]
            scheduler._last_lr = [float(rate) for rate in scheduler._last_lr]
            for group in optimizer.param_groups:
                group["lr"] = float(group["lr"])
        return scheduler

    return plain


def _plain_factor(factor: Callable[[int], Any]) -> Callable[[int], float]:
    return lambda step: float(factor(step))


def _staying_on_the_cpu(cuda: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def stay(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        caller = sys._getframe(1).f_globals.get("__name__")
        return self if caller == splatfacto.__name__ else cuda(self, *args, **kwargs)

    return stay


class NoLpips(torch.nn.Module):
    """Stands where splatfacto keeps its LPIPS; what it returns is taken out of the metrics again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Not a number: there is no distance."""
        return image.new_full((), float("nan"))


@contextmanager
def _no_lpips() -> Iterator[None]:
    from torchmetrics.image import lpip

    name = "LearnedPerceptualImagePatchSimilarity"
    original = getattr(lpip, name)
    setattr(lpip, name, NoLpips)
    try:
        yield
    finally:
        setattr(lpip, name, original)


def _without_lpips(populate_modules: Callable[..., None]) -> Callable[..., None]:
    def populate(self: splatfacto.SplatfactoModel) -> None:
        say(f"LPIPS is left out of the metrics: its weights are not in {lpips_weights().parent}")
        with _no_lpips():
            populate_modules(self)

    return populate


def _without_lpips_among_metrics(measure: Callable[..., Any]) -> Callable[..., Any]:
    def measured(self: splatfacto.SplatfactoModel, outputs: dict, batch: dict) -> tuple[dict, dict]:
        metrics, images = measure(self, outputs, batch)
        return {name: value for name, value in metrics.items() if name not in ("lpips", "cc_lpips")}, images

    return measured
