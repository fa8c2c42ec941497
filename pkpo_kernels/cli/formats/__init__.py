"""A module for each format of rollouts, which offers `read` and `write`.

What may stand in the files: see `pkpo_kernels.cli.rollout_files`.
"""
