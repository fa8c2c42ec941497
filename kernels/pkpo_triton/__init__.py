"""Triton kernels for PKPO reward transforms on GPUs; needs torch and triton alone.

A row is sorted in registers by a network, its gaps are weighed and scanned, and every value goes
back to its sample's own place, in one launch: see `pkpo_triton.kernels`. An estimator is data to
the kernels: see `Weights`. Most people call them through `pkpo_kernels.transform`.
"""

from pkpo_triton.op import Weights, max_at_k, transform

__all__ = ["Weights", "max_at_k", "transform"]
