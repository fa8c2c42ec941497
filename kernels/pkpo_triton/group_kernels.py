"""Groups of a flat array by their ids: a hash table in memory, and every group's samples side by
side, sorted, for `sorted_row.finish_row` to finish. Four phases, with all programs in each:

    insert   each entry finds the slot of its id, or block, and its index in its group
    place    each group gets a stretch of memory, and each entry puts itself there
    rank     each entry counts how many of its group are less, and goes where that says
    finish   each group becomes its values, at the entries' own offsets, and leaves its slot empty

In one launch, where all programs run at once and wait for each other between phases; or a launch
for each phase. The host waits for nothing.

Indices come as threads happen to run, and so does what stands where before a group is sorted.
Values do not depend on it: they are functions of a group's sorted rewards.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pkpo_triton.sorted_row import Kind, Rules, finish_row, load_k

# A program is a warp: of a group few have more samples than lanes, and to add or to compare what
# lanes hold takes no barrier. It has so many entries at a time …
BLOCK = 32
# … looks at so many others of their groups together …
STEP = 8
# … and finishes a group so many samples at a time.
BLOCK_OF_GROUP = 64

# All phases in one launch, or one of these.
PHASES = ("insert", "place", "rank", "finish")
ALL = "all"

# Words of counters, of which five are used, so that the table is aligned.
_COUNTERS = tl.constexpr(8)
_SLOTS_AN_ENTRY = tl.constexpr(2)

_TAKEN = tl.constexpr(1)
_FIRST = tl.constexpr(2)


class Scratch(NamedTuple):
    """What the phases share, of 32 bits each. In the beginning all is 0 to the table's end, and in
    the end the table again; the counters go on. What is behind may hold anything."""

    counters_ptr: Any  # (1,) int64: groups that have a stretch << 32 | entries in them
    arrived_ptr: Any  # (3,) programs that are done with a phase
    table_ptr: Any  # (table_size,) 1 + the number of an entry with the slot's id
    size_ptr: Any  # (table_size,) entries of the group
    start_ptr: Any  # (table_size,) where its stretch begins, + _FIRST; _TAKEN: in a moment
    slot_ptr: Any  # (capacity,) of an entry's id; −1 where it is left out
    index_ptr: Any  # (capacity,) of an entry in its group
    key_ptr: Any  # (capacity,) rewards as integers that compare alike, a group side by side
    entry_ptr: Any  # (capacity,) whose they are
    stretch_ptr: Any  # (capacity,) where the group begins that they stand in
    count_ptr: Any  # (capacity,) how many there are in it
    ordered_ptr: Any  # (capacity,) rewards, each group sorted
    offset_ptr: Any  # (capacity,) whose they are
    group_start_ptr: Any  # (capacity,) where a group begins, by its number
    group_size_ptr: Any  # (capacity,)
    group_slot_ptr: Any  # (capacity,)


class Before(NamedTuple):
    """What the counters have counted in other launches, up to as often as they have overflowed."""

    counted: Any  # ()
    arrived: Any  # ()


def capacity_for(n_entries: int) -> int:
    """Choose for how many entries scratch is laid out: a power of two."""
    return 1 << (n_entries - 1).bit_length()


def table_size(capacity: int) -> int:
    """Count the slots of the hash table, of which at most half are taken."""
    return _SLOTS_AN_ENTRY.value * capacity


def cleared_size(capacity: int) -> int:
    """Count the words of `Scratch` that are 0 in the beginning."""
    return _COUNTERS.value + 3 * table_size(capacity)


def scratch_size(capacity: int) -> int:
    """Count the words of `Scratch`."""
    return cleared_size(capacity) + 11 * capacity


@triton.jit
def _scratch(ptr, capacity):
    """Lay `Scratch` out: pointers into memory of `scratch_size` words of int32."""
    table_size = _SLOTS_AN_ENTRY * capacity
    table = ptr + _COUNTERS
    entries = table + 3 * table_size
    return Scratch(
        ptr.to(tl.pointer_type(tl.int64)),
        ptr + 2,
        table,
        table + table_size,
        table + 2 * table_size,
        entries,
        entries + capacity,
        entries + 2 * capacity,
        entries + 3 * capacity,
        entries + 4 * capacity,
        entries + 5 * capacity,
        (entries + 6 * capacity).to(tl.pointer_type(tl.float32)),
        entries + 7 * capacity,
        entries + 8 * capacity,
        entries + 9 * capacity,
        entries + 10 * capacity,
    )


@triton.jit
def _any(x):
    """Tell whether any of (BLOCK,) bools is true: ()."""
    return tl.max(x.to(tl.int32), 0) > 0


@triton.jit
def _hashed(id):
    """Mix integers of 64 bits so that all bits of one decide on each of the result, of 32 bits
    (MurmurHash3's last step): (BLOCK,) → (BLOCK,)."""
    x = id.to(tl.uint64)
    x = (x ^ (x >> 33)) * 0xFF51AFD7ED558CCD
    x = (x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53
    return (x ^ (x >> 33)).to(tl.int32)


@triton.jit
def _order_key(x):
    """Reinterpret floats as integers in the same order, NaN last: (BLOCK,) → (BLOCK,)."""
    bits = x.to(tl.int32, bitcast=True)
    # Of negative numbers all bits but the sign run the other way.
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(x == x, key, 0x7FFFFFFF)


@triton.jit
def _of_order_key(key):
    """Undo `_order_key`: (BLOCK,) → (BLOCK,)."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def _slot(i, valid, ids_ptr, scratch, table_size, BLOCK: tl.constexpr):
    """Find the slots of valid entries' ids in the hash table, or take one: their numbers i
    (BLOCK,) → (BLOCK,)."""
    id = tl.load(ids_ptr + i, mask=valid, other=0).to(tl.int64)  # (BLOCK,)
    slot = _hashed(id) & (table_size - 1)  # (BLOCK,)
    searches = valid  # (BLOCK,)
    while _any(searches):
        # Who has found its slot compares with what is in none.
        expected = tl.where(searches, 0, -1)  # (BLOCK,)
        seen = tl.atomic_cas(scratch.table_ptr + slot, expected, i + 1, sem="relaxed")  # (BLOCK,)
        is_taken = searches & (seen > 0)  # (BLOCK,)
        other = tl.load(ids_ptr + (seen - 1), mask=is_taken, other=0).to(tl.int64)  # (BLOCK,)
        searches = is_taken & (other != id)
        slot = tl.where(searches, (slot + 1) & (table_size - 1), slot)
    return slot


@triton.jit
def _insert(
    i, rewards_ptr, ids_ptr, where_ptr, results_ptr, scratch, n_entries, table_size,
    entries_a_group,
    BY_ID: tl.constexpr, MASKED: tl.constexpr, DROPS_NAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find the slots of entries' ids, or of their blocks, and count them there: their numbers i
    (BLOCK,). What is left out gets its result, 0."""
    inside = i < n_entries  # (BLOCK,)
    valid = inside  # (BLOCK,)
    if MASKED:
        valid = valid & (tl.load(where_ptr + i, mask=inside, other=0) != 0)
    if DROPS_NAN:
        x = tl.load(rewards_ptr + i, mask=inside, other=0).to(tl.float32)  # (BLOCK,)
        valid = valid & (x == x)
    tl.store(results_ptr + i, tl.zeros([BLOCK], tl.float32), mask=inside & ~valid)

    if BY_ID:
        slot = _slot(i, valid, ids_ptr, scratch, table_size, BLOCK)  # (BLOCK,)
    else:
        slot = i // entries_a_group  # (BLOCK,) as many as there are blocks
    index = tl.atomic_add(scratch.size_ptr + slot, 1, mask=valid, sem="relaxed")  # (BLOCK,)
    tl.store(scratch.slot_ptr + i, tl.where(valid, slot, -1), mask=inside)
    tl.store(scratch.index_ptr + i, index, mask=valid)


@triton.jit
def _place(i, rewards_ptr, scratch, before, n_entries, BLOCK: tl.constexpr):
    """Give groups a stretch of memory each, and put their entries there: their numbers i
    (BLOCK,)."""
    slot = tl.load(scratch.slot_ptr + i, mask=i < n_entries, other=-1)  # (BLOCK,)
    valid = slot >= 0  # (BLOCK,)
    slot = tl.maximum(slot, 0)  # (BLOCK,)
    n = tl.load(scratch.size_ptr + slot, mask=valid, other=0)  # (BLOCK,)

    # The first that comes takes a stretch for its group, and says so before it waits for others: so
    # who is waited for runs, and waits for nobody.
    expected = tl.where(valid, 0, -1)  # (BLOCK,)
    taken = tl.full([BLOCK], _TAKEN, tl.int32)  # (BLOCK,)
    seen = tl.atomic_cas(scratch.start_ptr + slot, expected, taken, sem="relaxed")  # (BLOCK,)
    takes = valid & (seen == 0)  # (BLOCK,)
    both = tl.where(takes, (tl.full([], 1, tl.int64) << 32) + n, 0)  # (BLOCK,)
    base = tl.atomic_add(scratch.counters_ptr, tl.sum(both, 0), sem="relaxed")  # ()
    first = base - before.counted + (tl.cumsum(both, 0) - both)  # (BLOCK,)
    number, start = (first >> 32).to(tl.int32), first.to(tl.int32)  # (BLOCK,)
    tl.store(scratch.group_start_ptr + number, start, mask=takes)
    tl.store(scratch.group_size_ptr + number, n, mask=takes)
    tl.store(scratch.group_slot_ptr + number, slot, mask=takes)
    tl.atomic_xchg(scratch.start_ptr + slot, start + _FIRST, mask=takes, sem="relaxed")

    known = tl.where(takes, start + _FIRST, tl.where(valid, seen, _FIRST))  # (BLOCK,)
    while _any(known < _FIRST):
        waits = known < _FIRST  # (BLOCK,)
        now = tl.atomic_add(scratch.start_ptr + slot, 0, mask=waits, sem="relaxed")  # (BLOCK,)
        known = tl.where(waits, now, known)
    index = tl.load(scratch.index_ptr + i, mask=valid, other=0)  # (BLOCK,)
    start = known - _FIRST  # (BLOCK,)
    at = start + index  # (BLOCK,)
    x = tl.load(rewards_ptr + i, mask=valid, other=0).to(tl.float32)  # (BLOCK,)
    tl.store(scratch.key_ptr + at, _order_key(x), mask=valid)
    tl.store(scratch.entry_ptr + at, i, mask=valid)
    # All that ranks take, so that one load does not wait for another.
    tl.store(scratch.stretch_ptr + at, start, mask=valid)
    tl.store(scratch.count_ptr + at, n, mask=valid)


@triton.jit
def _rank(at, scratch, before, n_entries, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """Sort groups: what stands at `at` (BLOCK,) goes behind all of its group that are less, and of
    its equals behind those that stand before it."""
    valid = at < (tl.load(scratch.counters_ptr) - before.counted).to(tl.int32)  # (BLOCK,)
    inside = at < n_entries  # (BLOCK,)
    key = tl.load(scratch.key_ptr + at, mask=inside, other=0)  # (BLOCK,)
    entry = tl.load(scratch.entry_ptr + at, mask=inside, other=0)  # (BLOCK,)
    start = tl.load(scratch.stretch_ptr + at, mask=inside, other=0)  # (BLOCK,)
    n = tl.load(scratch.count_ptr + at, mask=inside, other=0)  # (BLOCK,)
    n = tl.where(valid, n, 0)  # (BLOCK,)

    rank = tl.zeros([BLOCK], tl.int32)  # (BLOCK,)
    other_ptr, left, ahead = scratch.key_ptr + start, n, at - start  # each (BLOCK,)
    for _ in tl.range(0, tl.max(n, 0), STEP):
        others = ()
        for step in tl.static_range(STEP):  # all on the way at once
            # Where there is none, none is larger.
            other = tl.load(other_ptr + step, mask=left > step, other=0x7FFFFFFF)  # (BLOCK,)
            others = others + (other,)
        for step in tl.static_range(STEP):
            # Less than the key, or an equal that stands before it.
            rank += (others[step] <= key - (ahead <= step).to(tl.int32)).to(tl.int32)
        other_ptr += STEP
        left -= STEP
        ahead -= STEP
    tl.store(scratch.ordered_ptr + (start + rank), _of_order_key(key), mask=valid)
    tl.store(scratch.offset_ptr + (start + rank), entry, mask=valid)


@triton.jit
def _before(scratch, ALL: tl.constexpr):
    """Load what launches before this one have counted: → `Before`. Phases that are launched apart
    have scratch of their own."""
    if ALL:
        # Nobody adds to these until all programs have arrived elsewhere, behind this.
        return Before(tl.load(scratch.counters_ptr), tl.load(scratch.arrived_ptr + 2))
    else:
        return Before(tl.full([], 0, tl.int64), tl.full([], 0, tl.int32))


@triton.jit
def _wait_for_all(arrived_ptr, before):
    """Wait until all programs of the grid are here: what they have written is seen from now on."""
    tl.debug_barrier()
    tl.atomic_add(arrived_ptr, 1, sem="release")
    while tl.atomic_add(arrived_ptr, 0, sem="acquire") - before.arrived < tl.num_programs(0):
        pass
    tl.debug_barrier()


@triton.jit
def _free_slot(slot, scratch):
    """Leave a group's slot () as it was in the beginning."""
    tl.store(scratch.table_ptr + slot, 0)
    tl.store(scratch.size_ptr + slot, 0)
    tl.store(scratch.start_ptr + slot, 0)


@triton.jit(
    do_not_specialize=(
        *("n_entries", "capacity", "entries_a_group", "factorials_size", "k"),
        *("requires_k_lt_n", "undersized", "by_mean", "counted_from_top", "by_group", "by_size"),
    ),
    do_not_specialize_on_alignment=("rewards_ptr", "ids_ptr", "where_ptr", "k_ptr"),
)
def groups_kernel(
    rewards_ptr, ids_ptr, where_ptr, k_ptr, scratch_ptr, results_ptr, coefficients_ptr,
    factorials_ptr, n_entries, capacity, entries_a_group, factorials_size, k, requires_k_lt_n,
    undersized, by_mean, counted_from_top, by_group, by_size, factor: "fp32",
    PHASE: tl.constexpr, BY_ID: tl.constexpr, K: tl.constexpr, MASKED: tl.constexpr,
    DROPS_NAN: tl.constexpr, INDEX_SHIFT: tl.constexpr, NORMALIZED: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, BLOCK_OF_GROUP: tl.constexpr,
):  # fmt: skip
    """Transform entries by their ids, or in blocks of so many as a group has, in one of the phases
    or in all.

    K says where k is: "int", the argument; "scalar", in memory. Values are multiplied with the
    factor; by_group: over the number of groups; by_size: and over the group's size.
    """
    ALL: tl.constexpr = PHASE == "all"
    scratch = _scratch(scratch_ptr, capacity)
    before = _before(scratch, ALL)
    first, step = tl.program_id(0), tl.num_programs(0)  # (), ()
    every = tl.arange(0, BLOCK)  # (BLOCK,)
    n_blocks = tl.cdiv(n_entries, BLOCK)  # ()

    if ALL or PHASE == "insert":
        for block in tl.range(first, n_blocks, step):
            _insert(
                block * BLOCK + every, rewards_ptr, ids_ptr, where_ptr, results_ptr, scratch,
                n_entries, _SLOTS_AN_ENTRY * capacity, entries_a_group,
                BY_ID, MASKED, DROPS_NAN, BLOCK,
            )  # fmt: skip
    if ALL:
        _wait_for_all(scratch.arrived_ptr, before)
    if ALL or PHASE == "place":
        for block in tl.range(first, n_blocks, step):
            _place(block * BLOCK + every, rewards_ptr, scratch, before, n_entries, BLOCK)
    if ALL:
        _wait_for_all(scratch.arrived_ptr + 1, before)
    if ALL or PHASE == "rank":
        for block in tl.range(first, n_blocks, step):
            _rank(block * BLOCK + every, scratch, before, n_entries, BLOCK, STEP)
    if ALL:
        _wait_for_all(scratch.arrived_ptr + 2, before)
    if ALL or PHASE == "finish":
        kind: tl.constexpr = Kind(False, False, INDEX_SHIFT, NORMALIZED, BLOCK_OF_GROUP)
        n_groups = ((tl.load(scratch.counters_ptr) - before.counted) >> 32).to(tl.int32)  # ()
        k = load_k(k, k_ptr, K)  # ()
        if by_group != 0:
            factor = factor / n_groups.to(tl.float32)  # ()
        rules = Rules(requires_k_lt_n, undersized, by_mean, counted_from_top)
        for group in tl.range(first, n_groups, step):
            start = tl.load(scratch.group_start_ptr + group)  # ()
            n = tl.load(scratch.group_size_ptr + group)  # ()
            _free_slot(tl.load(scratch.group_slot_ptr + group), scratch)
            of_group = factor  # ()
            if by_size != 0:
                of_group = factor / n.to(tl.float32)  # ()
            finish_row(
                scratch.ordered_ptr + start, scratch.offset_ptr + start, results_ptr,
                scratch_ptr, 0,  # no mask is read
                n, n, k, of_group, rules, coefficients_ptr, factorials_ptr, factorials_size, kind,
            )  # fmt: skip
