"""How rows of n samples are spread over threads, all regimes: `packed_plan`, which is asked first,
for usual rows on NVIDIA's GPUs; `plan` for all else."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import triton

# Rows longer than this are sorted by the library: see `long_rows`. A program of 512 threads has no
# registers left for 32 samples in each.
LONGEST_ON_CHIP = 8192
MOST_THREADS_PER_ROW = 256

# How every kernel is compiled. a·b + c is one instruction with one rounding: a third of what the
# kernels compute, and no result relies on its absence. Triton's own default changes.
OPTIONS = {"enable_fp_fusion": True}


class Plan(NamedTuple):
    """Constants of a kernel for rows of n samples."""

    samples_per_thread: int
    threads_per_row: int
    block_rows: int
    num_warps: int
    vector: int  # neighbours that a thread reads at a time; divides n
    warp: int  # threads that run in step
    # What a kernel reads for each of a row's samples: "ready", its r_j; "chain", at most what leads
    # from one to the next.
    weights: str

    @property
    def samples(self) -> int:
        """How many samples a row's threads hold, n or more."""
        return self.samples_per_thread * self.threads_per_row

    def max_registers(self, *, known_k: bool, normalized: bool) -> int | None:
        """Limit a thread's on NVIDIA's GPUs, None where the compiler has its way.

        It takes up to 255, with which too few threads are at work. With 128, and some tens of words
        in memory, an H100 is faster by a tenth at 102 samples and by two fifths at 8192, with a
        mask by a fifth at 102 and 512 (at 4096 by less than with 144). With a k in memory it is
        not, and an std takes more.
        """
        return 128 if self.threads_per_row > 1 and known_k and not normalized else None


# Fewer rows than this leave most of a GPU idle where a thread has several of them: an H200 has 132
# multiprocessors, and 8 rows a thread make blocks of 512.
FEW_ROWS = 1 << 16


def plan(
    n: int,
    itemsize: int,
    *,
    masked: bool,
    uniform: bool,
    warp: int = 32,
    few_rows: bool = False,
) -> Plan | None:
    """Plan a kernel for rows of n samples, None for those that the library sorts.

    Args:
        n: samples in a row.
        itemsize: bytes of a reward in memory, or of a result if that has more.
        masked: some samples may be left out.
        uniform: all rows share weights known to the host, and no std is asked for; the opposite
            takes registers for every row.
        warp: threads that run in step: 32, on some of AMD's GPUs 64.
        few_rows: there are fewer than FEW_ROWS.

    | n       | threads a row | samples a thread | why (instructions a sample, sm_90, float32)
    | to 8    | 1             | n                | uniform: 8 rows a thread: 26 at 8; 4: 27; 1: 33
    |         |               |                  | few rows: 1, for every multiprocessor has some
    | to 16   | 1             | n                | 1 warp: 42 at 12, 40 at 16; 2: sm_100 spills
    | to 32   | 1             | n                | 54; 2 threads: 75. 1 warp: 54, but sm_100 spills
    | masked  | 2             | 16               | 48 on the ALU; 1 thread: 55, and sm_100 spills
    | to 8192 | 2 … 256       | 32               | 65 at 64, 172 at 1024; 16 a thread: 80, 198
    | others  |               |                  | the library's sort, then one fused kernel

    Rows on several threads are padded to a power of two. They exchange through shared memory,
    which Triton's gather uses where a program has two warps or more.
    """
    if n <= (16 if masked else 32):
        warps = 1 if 8 < n <= 16 else 2
        rows_a_thread = 1
        if uniform and n <= 8 and not few_rows:
            # Of no power of two they are padded in a tile, which takes registers.
            rows_a_thread = 4 if n & (n - 1) else 8
        return Plan(n, 1, warp * warps * rows_a_thread, warps, 1, warp, "chain")
    if n > LONGEST_ON_CHIP:
        return None
    samples_per_thread = 16 if n <= 32 else 32
    threads_per_row = (1 << (n - 1).bit_length()) // samples_per_thread
    block_rows = max(1, 2 * warp // threads_per_row)
    vector = min(samples_per_thread, 16 // itemsize)
    while n % vector:
        vector //= 2
    num_warps = block_rows * threads_per_row // warp
    weights = "ready" if uniform else "chain"
    return Plan(samples_per_thread, threads_per_row, block_rows, num_warps, vector, warp, weights)


class PackedPlan(NamedTuple):
    """Constants of a packed kernel: see `pkpo_triton.packed`.

    A program is one warp, block_rows · threads_per_row = 32, or one row of `packed_long` in 64
    threads. A row's threads are a power of two, in `packed_long` 8 or more.
    """

    block_rows: int  # so many rows are a program's
    threads_per_row: int
    max_registers: int | None = None  # a thread's, None where the compiler has its way
    levels: int = 4  # rows of so many distinct values are counted, which costs less than to sort
    is_long: bool = False  # the kernel is that of `pkpo_triton.packed_long`

    @property
    def num_warps(self) -> int:
        """Count the warps of a program, of 32 threads each."""
        return self.block_rows * self.threads_per_row // 32

    def slots(self, n: int) -> tuple[int, int]:
        """Give the shape of a row of n samples in threads: samples a thread, threads."""
        return samples_per_thread(n, self.threads_per_row, self.is_long), self.threads_per_row


@triton.constexpr_function  # type: ignore[untyped-decorator]
def samples_per_thread(n: Any, threads_per_row: Any, is_long: Any) -> Any:
    """Count what each of a row's threads holds: whole quads, in `pkpo_triton.packed_long` pairs of
    them."""
    step = 8 if is_long else 4
    return -(-n // (step * threads_per_row)) * step


# By the longest rows that they serve.
_ONE_THREAD = PackedPlan(32, threads_per_row=1)
_SHORT = {
    16: _ONE_THREAD._replace(levels=2),
    32: _ONE_THREAD._replace(levels=3),
}
_TWO_THREADS = PackedPlan(16, threads_per_row=2)
_FOUR_THREADS = PackedPlan(8, threads_per_row=4, max_registers=96)
_EIGHT_AND_MORE = {
    256: PackedPlan(4, threads_per_row=8, max_registers=96),
    384: PackedPlan(4, threads_per_row=8, max_registers=128),
    512: PackedPlan(2, threads_per_row=16, max_registers=96),
    768: PackedPlan(2, threads_per_row=16, max_registers=128),
    1024: PackedPlan(1, threads_per_row=32, max_registers=96),
    1536: PackedPlan(1, threads_per_row=32, max_registers=128),
    # As few registers as next to nothing is spilled with; left alone, ptxas (12.8) takes up to 255.
    2048: PackedPlan(1, threads_per_row=32, max_registers=200),
}
_TWO_WARPS = {
    3072: PackedPlan(1, threads_per_row=64, max_registers=128),
    4096: PackedPlan(1, threads_per_row=64, max_registers=200),
}
_LONG = {n: plan._replace(is_long=True) for n, plan in (_EIGHT_AND_MORE | _TWO_WARPS).items()}
# In rows as short as these keys of upper bits sort again seldom enough.
_PLAIN = _SHORT | {
    48: _ONE_THREAD,
    64: _TWO_THREADS,
    128: _FOUR_THREADS,
    160: _EIGHT_AND_MORE[256],
    **_LONG,
}
_SHORT_MASKED = _SHORT | {
    36: _ONE_THREAD,
    64: _TWO_THREADS._replace(max_registers=96),
    128: _FOUR_THREADS,
}
_MASKED = _SHORT_MASKED | {224: _EIGHT_AND_MORE[256], **_LONG}
_MASKED_OF_16_BITS = _SHORT_MASKED | _EIGHT_AND_MORE
_OF_16_BITS = _SHORT | {
    32: _SHORT[32]._replace(max_registers=80),
    64: _ONE_THREAD,
    128: _FOUR_THREADS,
    **_EIGHT_AND_MORE,
}


# Of C(n, k) with a mask, whose weights are kept in two factors of float32, n what a row's threads
# hold: all k of 256, of 512 those to 56 and from 456 on, of 1024 to 42, of 4096 to 29.
MOST_BITS_MASKED = 252


def packed_plan(
    n: int, *, usual: bool, backend: str, itemsize: int = 4, masked: bool = False, k: int = 1
) -> PackedPlan | None:
    """Plan a packed kernel for rows of n samples, None where there is none: `plan` serves all.

    Args:
        n: samples in a row; None for all but multiples of four.
        usual: rewards and results are float32, bfloat16 or float16, whole rows one after the other
            from a multiple of 16 bytes on, and so is a mask; all rows share a k known to the host,
            and no std is asked for.
        backend: Triton's name for what it compiles for: "cuda", "hip"; "" where it interprets.
        itemsize: bytes of a reward.
        masked: samples may be left out.
        k: with a mask, whether float32 holds the weights.

    32 samples a thread: 64 take fewer instructions, but so many registers that half as many threads
    are at work, and so much code that they wait for it. An H200 (at 128 samples, of a copy's speed)
    was at 0.66 with 32, at 0.41 with 64, at 0.62 with 16; at 0.59 and 0.56 where two and four warps
    shared a program. 16 bits need no second sort: at 64 samples they are the faster with 64 (0.61,
    0.55).

    96 registers: left alone ptxas (12.8) takes up to 138, and fewer threads are at work. An H100
    gains a twentieth (128 samples: 0.93, 0.89; 1024: 0.49, 0.46; at 512 a hundredth), and but for
    512 loses it again with 88. Up to 2 words of a thread, on sm_100 18, lie in memory then. It
    gains nothing where whole rows of float32 have 16, 32 and 64 samples, and loses where 64 samples
    of 16 bits lie in a thread, which do not fit (0.76, 0.39).

    Instructions a sample, on sm_90; "again" is what sorting once more by exact keys comes to. The
    last column is of `plan`'s kernels, of any rewards without a mask and with one. (64 of 16 bits
    with a mask: 2 threads.)

    | n   | threads a row     | sorted, again | with a mask | 2, 4 values | 16 bits | `plan`'s |
    | 16  | 1                 | 24, 49        | 31          | 18, 24      | 24      | 40, 62   |
    | 32  | 1                 | 25, 54        | 31          | 16, 34      | 26      | 54, 92   |
    | 64  | 2; of 16 bits: 1  | 33, 75        | 40          | 17, 32      | 29      | 65, 91   |
    | 128 | 4                 | 43, 95        | 50          | 17, 33      | 44      | 85, 110  |
    | 256 | 8                 | –             | 68          | –           | 56      | 108, 133 |
    | 512 | 16                | –             | –           | –           | 72      | 141, 168 |

    Other lengths, without a mask and with one; behind them `plan`'s, without. Between 32 and 64 a
    row of float32 lies in one thread as long as that takes no more than 128 registers: to 48
    samples, with a mask to 36. In two 40 would take 38 instructions, and 72 registers; an H100 is
    as fast either way.

    | n      | 12     | 24     | 36     | 40     | 48     | 56     | 80     | 100    | 300 | 1000 |
    | packed | 27, 35 | 29, 36 | 32, 39 | 32, 45 | 33, 44 | 39, 46 | 49, 53 | 58, 62 | 74  | 101  |
    | `plan` | 42     | 61     |        | 119    | 99     |        | 150    | 120    | 245 | 184  |

    Of normal rewards 1, 0, 0.5 and 4 % of the programs of 16, 32, 64 and 128 samples sort again, of
    uniform ones 0, 2, 4 and 16 %; so the long kernel serves 256 with a mask (68; 72 with what sorts
    again), and of whole rows those from 164 on: 132 take 76 (93), 160 take 63 (76), 200 take 74 to
    98 (82).

    The long ones, of float32, from 164 samples on without a mask and from 228 on with one: sorted,
    and with that one pass over neighbours, at most three; the most of any rows; in brackets
    exchanges between lanes, shuffles and wavefronts of shared memory. With a mask 80 at 300, 85 at
    512 and 103 at 1024 (`plan`'s: 168 and 199 at the last two).

    | n    | threads a row | sorted   | a pass  | the most  | 2, 4 values | `plan`: any, 2 |
    | 256  | 8             | 60 (14)  | 11 (8)  | 203 (137) | 17, 33      | 108 (30), 21   |
    | 512  | 16            | 78 (17)  | 10 (7)  | 253 (145) | 17, 34      |                |
    | 1024 | 32            | 96 (20)  | 10 (7)  | 306 (154) | 17, 33      | 172 (42), 21   |
    | 2048 | 32            | 102 (20) | 10 (7)  | 328 (153) | 14, 29      |                |
    | 4096 | 64            | 126 (25) | 10 (7)  | 394 (168) | 16, 32      | 250 (79), 21   |

    Merged through shared memory, as they used to be, keys of more than four threads take 61, 74 and
    90 instructions at 256, 512 and 1024, but 16, 21 and 25 exchanges.

    So many of the programs make a pass, of normal rewards 0.5, 6, 23, 85 and 100 %, of uniform ones
    0.5, 2, 10, 61 and 100 %, of lognormal ones (σ = 2) 64 and then 100 %, and of these 0, 0, 2, 43
    and 100 % are sorted twice more; of 1 + 0.001 · normal rewards none.

    What an H100 reaches of a copy's speed, and an H200, whose copy is faster by two fifths, with
    normal rewards in float32, with a mask, and in bfloat16. All of it is of those merges, of masked
    rows of 256 in 16 threads, and of `plan`'s kernels for masks and 16 bits beyond:

    | n    | 16       | 32       | 64       | 128      | 256      | 512      | 1024     | 2048     |
    | all  | .99, .96 | .98, .96 | .98, .87 | .93, .70 | .84, .62 | .67, .50 | .49, .35 | .36, .25 |
    | mask |      .94 | .95, .78 | .95, .77 | .87, .65 | .69, .51 |          |          |          |
    | 16 b | .91, .77 | .88, .76 | .74, .59 | .59, .44 | .45, .33 |          |          |          |
    """
    if not usual or backend != "cuda" or n <= 8 or n % 4:
        return None
    if itemsize == 4:
        plans = _MASKED if masked else _PLAIN
    else:
        plans = _MASKED_OF_16_BITS if masked else _OF_16_BITS
    chosen = next((plan for longest, plan in plans.items() if n <= longest), None)
    if chosen is not None and masked:
        samples, threads = chosen.slots(n)
        if math.comb(samples * threads, k).bit_length() > MOST_BITS_MASKED:
            return None
    return chosen
