"""Momentum-GS (Fan et al., ICCV 2025, arXiv 2412.04887): a city in blocks that share a decoder with a momentum
teacher."""
