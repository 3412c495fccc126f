"""Dreamer XL (Miao et al. 2024, arXiv 2405.11252): Gaussians from text; and with other objectives its siblings."""
