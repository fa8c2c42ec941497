"""What computes, a module for each way, behind `pkpo_kernels.api`: see `registry`."""
