"""A module for each format of rollouts, which offers `read`, and `write` where it is written too.

What may stand in the files: see `pkpo_kernels.cli.rollout_files`.
"""
