"""Consistent3D (Wu et al. 2024, arXiv 2401.09050): a radiance field, then a mesh, from text by consistency sampling."""
