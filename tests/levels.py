"""When a test runs: in `make test`; marked "slow", in `make test-all`; marked "release", in `make
test-release`.

What takes long everywhere says so itself. Here it is said of what takes long in some places only:

- on the machine for PTX, long rows, whose kernels take longer to compile than all that runs on it,
  unless a test is marked "any_length";
- tests marked "costly" with the PLACES where they are, which run one command later there;
- in the contract, for subjects that are asked few cases of each test, the others: see
  `subjects.Asked`.

Cases are counted in what is collected: to run one by its name, add -m ''.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from subjects import INTERPRETED, ON_PTX, Asked, Subject

MARKS = ("slow", "release")
# "few": wherever a subject is asked few cases.
PLACES = {"ptx", "interpreted", "few"}
# On the machine for PTX the longest rows of `make test`, and of `make test-all`.
PTX_N = (16, 32)


def mark(items: Sequence[pytest.Item]) -> None:
    """Mark what runs later than it says itself, of all items that were collected."""
    levels = [_own_level(item) for item in items]
    alike = [(_test_of(item), level) for item, level in zip(items, levels, strict=True)]
    cases, before = Counter(alike), Counter[tuple[str, int]]()
    for item, level, its in zip(items, levels, alike, strict=True):
        asked = _asked(item)
        if asked:
            is_essential = item.get_closest_marker("essential") is not None
            level += _runs_left_out(asked, is_essential, before[its], cases[its])
        before[its] += 1
        if level:
            item.add_marker(MARKS[min(level, len(MARKS)) - 1])


def _own_level(item: pytest.Item) -> int:
    """Count the commands that leave out an item, however many cases its test has."""
    level = max(i + 1 if item.get_closest_marker(own) else 0 for i, own in enumerate(MARKS))
    if ON_PTX and not item.get_closest_marker("any_length"):
        level = max(level, sum(_parameters(item).get("n", 0) > n for n in PTX_N))
    here = {"ptx"} if ON_PTX else {"interpreted"} if INTERPRETED else set()
    if _asked(item):
        here.add("few")
    for costly in item.iter_markers("costly"):
        if not costly.args or not PLACES.issuperset(costly.args):
            raise ValueError(f"costly must name some of {sorted(PLACES)}; got {costly.args}")
        level += len(here.intersection(costly.args))
    return level


def _runs_left_out(asked: Asked, is_essential: bool, case: int, cases: int) -> int:
    """Count the commands that leave out a case, one of so many, since few are asked."""
    if _is_among(asked.essential if is_essential else asked.others, case, cases):
        return 0
    return 1 if _is_among(asked.before_release, case, cases) else 2


def _is_among(limit: int, case: int, cases: int) -> bool:
    """Tell whether a case is among so many: the first, the last, and others between.

    >>> [case for case in range(10) if _is_among(3, case, 10)]
    [0, 4, 9]
    """
    if limit >= cases:
        return True
    return case in {i * (cases - 1) // max(1, limit - 1) for i in range(limit)}


def _test_of(item: pytest.Item) -> str:
    """Name the test that an item is a case of, with the subject that it asks."""
    subject = _parameters(item).get("subject")
    return item.nodeid.partition("[")[0] + (subject.id if isinstance(subject, Subject) else "")


def _asked(item: pytest.Item) -> Asked | None:
    """Find how few cases an item's subject is asked; None for all, and where there is none."""
    subject = _parameters(item).get("subject")
    return subject.asked if isinstance(subject, Subject) else None


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return (
        item.callspec.params
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )
