"""Pallas kernels for TPUs. Holds no kernel yet: `pkpo_kernels` says so when asked for "pallas"."""
