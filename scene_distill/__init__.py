"""scene_distill: the toolkit for distillation in 3D."""

__version__ = "0.1.0"
