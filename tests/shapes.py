"""Shapes of reward matrices, declared once for all tests."""

# Every k of these is checked against all subsets.
ENUMERATED_N = (1, 2, 3, 4, 6)

# (rows, n) checked against the reference: around powers of two, odd counts, one row, one sample.
REFERENCE = ((1, 1), (3, 7), (3, 8), (17, 33), (2, 257), (2, 1024))


def ks_for(n: int) -> tuple[int, ...]:
    """Ks that matter for n: the ends, the usual ones, the middle."""
    return tuple(sorted({1, min(2, n), min(3, n), min(8, n), max(1, n // 2), max(1, n - 1), n}))
