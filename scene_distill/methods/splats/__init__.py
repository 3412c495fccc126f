"""Plain 3D Gaussian splatting (Kerbl et al., SIGGRAPH 2023, arXiv 2308.04079) on the same engine."""
