"""The mathematics: estimators as data, what they weigh a sorted row with, and the oracle.

The words of the whole project, in code, docstrings and messages alike:

    entry                  an element of a flat array
    sample                 one attempt at a task: one entry, or several
    group                  all samples of a task; in a matrix, a row
    block                  a group whose entries lie one behind the other
    segment                a group's samples in a sorted flat array
    valid, mask            a sample is part of its group where the mask (`where`) is True
    undersized             a group with too few valid samples for its k
    k_is_valid             1 ≤ k ≤ what the group's n valid samples admit
    requires_k_lt_n        an estimator that needs k < n: "sloo", "centered"
    gap                    d_j = g_(j+1) − g_(j) ≥ 0 between neighbours of the sorted row g
    coefficients           an estimator's numbers
    row offset             what an estimator gives a row's smallest reward: a constant a row
    max coefficient        the weight of a row's largest reward in that constant
    index_shift            r_j = C(j − index_shift, k−1)/C(n, k), the ratio that weights multiply
    counted from the top   a gap's distance from the largest reward, n−1−j
    exclusive prefix sum   Σ over what is sorted before
    index, offset, slot    where a value lies: in a row, in memory, in a table
    std, normalized        the deviation of the best of k; results that are divided by it
    few-level rows         rows with few distinct values
    clamped, range_scale   values that are made safe: cut to a range, multiplied with 2^−m
    static k, dynamic k    known on the host, or on the device alone
    implementation         a name that users choose; backend: the module that computes
    library                numpy, torch or jax
    unsupported()          rewards → why an implementation cannot serve them
    unavailable()          why an implementation cannot be used on this machine

Of Triton: threads_per_row, samples_per_thread. Of Pallas: interleaved (tiles that are worked on
together), ping-pong buffer, native layout (as XLA lays an array out), staging (a copy in VMEM). Of
measurements: candidate, baseline, rounds.
"""
