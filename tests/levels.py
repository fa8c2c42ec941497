"""When a test runs: in `make test`; marked "slow", in `make test-all`; marked "release", in `make
test-release`.

What takes long everywhere says so itself. Here it is said of what takes long in some places only:

- cases of the contract, for subjects that are asked few of each test: see `subjects.Asked`;
- on the machine for PTX, long rows, whose kernels take longer to compile than all that runs on it,
  unless a test is marked "any_length";
- tests marked "costly", for each mark one run later: in the places that it names, or without any
  for the subjects that are asked few cases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from subjects import INTERPRETED, ON_PTX, Subject

MARKS = ("slow", "release")
PLACE = "ptx" if ON_PTX else "interpreted" if INTERPRETED else "plain"
# On the machine for PTX rows of more samples than these are left out by `make test`, by both.
PTX_N = (16, 32)


def mark(items: Sequence[pytest.Item]) -> None:
    """Mark what runs later than it says itself, of all items that were collected."""
    cases = Counter(map(_test_of, items))
    before: Counter[tuple[str, str]] = Counter()
    for item in items:
        test = _test_of(item)
        level = _level(item, before[test], cases[test])
        before[test] += 1
        if level:
            item.add_marker(MARKS[level - 1])


def _test_of(item: pytest.Item) -> tuple[str, str]:
    """Name the test that an item is a case of, and the subject that it asks."""
    subject = _parameters(item).get("subject")
    return item.nodeid.partition("[")[0], subject.id if isinstance(subject, Subject) else ""


def _level(item: pytest.Item, case: int, cases: int) -> int:
    """Count the runs that leave out an item, which is one case of so many: 0, 1 or 2."""
    parameters = _parameters(item)
    level = max(i + 1 if item.get_closest_marker(own) else 0 for i, own in enumerate(MARKS))
    if ON_PTX and not item.get_closest_marker("any_length"):
        level = max(level, sum(parameters.get("n", 0) > n for n in PTX_N))
    subject = parameters.get("subject")
    asked = subject.asked if isinstance(subject, Subject) else None
    if asked:
        quick = asked.essential if item.get_closest_marker("essential") else asked.others
        if not _is_among(quick, case, cases):
            level = max(level, 1 if _is_among(asked.at_all, case, cases) else 2)
    for costly in item.iter_markers("costly"):
        level += PLACE in costly.args or (asked is not None and not costly.args)
    return min(level, len(MARKS))


def _is_among(limit: int, case: int, cases: int) -> bool:
    """Tell whether a case is among so many of them: the first, and others evenly spread.

    >>> [case for case in range(10) if _is_among(3, case, 10)]
    [0, 4, 7]
    """
    return case * limit % cases < limit


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return (
        item.callspec.params
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )
