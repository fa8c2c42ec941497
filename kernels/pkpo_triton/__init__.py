"""Triton kernels for GPUs. Holds no kernel yet: `pkpo_kernels` says so when asked for "triton"."""
