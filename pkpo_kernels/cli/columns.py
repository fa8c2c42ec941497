"""Which columns of a table, or keys of a JSON object, hold the tasks and their rewards.

One rule for all formats. What the user names comes first, then the layout of a program that is
known by its keys (`layouts`), then usual names. A reward column, by any of these, makes the table
long: a line is one sample, or one task where the column holds lists, and all other
columns are ignored. Without one the table is wide: a line is one task, and every column but the
task's is a sample. A number that is no reward would pass unseen there, so those columns must count
up under one name (s0, s1, …), and any other is refused unless the user names the columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pkpo_kernels.cli.layouts import Layout, recognized
from pkpo_kernels.validation import listed

__all__ = [
    "LIST_NAMES",
    "NEW_KEY",
    "REWARD_NAMES",
    "Columns",
    "choose_columns",
    "describe_columns",
    "option_of",
]

# The first of them wins over the others, two of which must be told apart by the user.
TASK_NAMES = (
    *("task_id", "problem_id", "example_id", "question_id", "prompt_id"),
    *("uid", "doc_id", "instance_id", "task"),
)
REWARD_NAMES = (
    *("reward", "score", "passed", "correct", "is_correct", "acc"),
    *("success", "solved", "is_solved", "resolved"),
)
# In formats that have lists, a list a task.
LIST_NAMES = ("rewards", "scores")
# What `transform` adds, which is no reward unless the user says so.
NEW_KEY = "transformed"

# What pandas makes of an index without a name, in a file and when it reads that file again.
_INDEX = re.compile(r"|index|level_\d+|unnamed: \d+|__index_level_\d+__", re.IGNORECASE)
# No "pass@5", "2026-11" or "('s', 0)".
_NUMBERED = re.compile(r"((?:[^\W\d][\w .-]*?)?)(\d+)", re.ASCII)


@dataclass(frozen=True)
class Columns:
    """The columns that were chosen, by their positions in the header.

    Attributes:
        names: all of them.
        task: the column of task ids.
        rewards: the columns of rewards.
        wide: each column of rewards is one sample of the line's task.
        apart: the column of which the file must hold one value: see `Layout`; None for none.
        layout: the name of the layout, "" for none.
    """

    names: tuple[str, ...]
    task: int
    rewards: tuple[int, ...]
    wide: bool
    apart: int | None = None
    layout: str = ""

    @property
    def reward(self) -> str:
        """The name of the one column of rewards."""
        return self.names[self.rewards[0]]

    def holds_lists(self, value_is_list: bool) -> bool:
        """Tell whether the one column of rewards must hold lists; one without a usual name may do
        either."""
        usual = self.reward.lower()
        return usual in LIST_NAMES or (usual not in REWARD_NAMES and value_is_list)


def choose_columns(
    names: Sequence[str],
    task_column: str | None = None,
    reward_columns: Sequence[str] | None = None,
    *,
    word: str = "column",
    layout: Layout | None = None,
) -> Columns:
    """Choose from the names of a header.

    Args:
        names: the header; a column without a name has "".
        task_column, reward_columns: what the user chose, or None.
        word: what the file calls a column.
        layout: the file's, where that is known by more than its keys.

    Raises:
        ValueError: with the reason, and what to do.

    >>> choose_columns(["task_id", "sample_idx", "passed"]).rewards
    (2,)
    >>> choose_columns(["", "task_id", "s0", "s1"], reward_columns=["s0", "s1"]).rewards
    (2, 3)
    """
    names = tuple(names)
    layout = layout or recognized(names)
    task = _task(names, task_column, word, layout)
    name = layout.name if layout else ""
    apart = names.index(layout.apart) if layout and layout.apart in names else None
    if reward_columns is not None:
        option = option_of("reward", word)
        rewards = [_position(names, chosen, option, word) for chosen in reward_columns]
        if not rewards or len(set(rewards)) < len(rewards):
            raise ValueError(
                f"{option} must name each {word} once; got {_listed(reward_columns) or 'none'}"
            )
        if task in rewards:
            raise ValueError(f"{option} must not name {names[task]!r}, the {word} of task ids")
        return Columns(names, task, tuple(rewards), len(rewards) > 1, apart, name)
    others = [i for i in range(len(names)) if i != task and names[i] != NEW_KEY]
    if not others:
        raise ValueError(f"there are no rewards beside the {word} {names[task]!r}")
    if layout is not None:
        there = [i for i in others if not _INDEX.fullmatch(names[i])]
        of_layout = [i for i in there if names[i] in layout.rewards(names)]
        reward = _the_one(names, of_layout, layout, word)
        return Columns(names, task, (reward,), False, apart, name)
    usual = _usual(names, others, word)
    if usual is not None:
        return Columns(names, task, (usual,), wide=False)
    _check_family(names, others, word)
    return Columns(names, task, tuple(others), wide=True)


def describe_columns(seen: Sequence[Columns], *, one_sample_a_line: bool) -> str:
    """Describe in one line what was taken from a file's lines, and what was ignored.

    >>> describe_columns([choose_columns(["task_id", "n", "passed"])], one_sample_a_line=True)
    'one sample a line: tasks from task_id, rewards from passed; ignored: n'
    """
    tasks = dict.fromkeys(columns.names[columns.task] for columns in seen)
    rewards = dict.fromkeys(c.names[i] for c in seen for i in c.rewards)
    rest = dict.fromkeys(
        columns.names[i]
        for columns in seen
        for i in range(len(columns.names))
        if i != columns.task and i not in columns.rewards
    )
    line = "one sample a line" if one_sample_a_line else "one task a line"
    if known := [columns.layout for columns in seen if columns.layout]:
        line = f"{known[0]}, {line}"
    ignored = f"ignored: {_listed(tuple(rest))}" if rest else "nothing ignored"
    return (
        f"{line}: tasks from {_listed(tuple(tasks))}, rewards from {_listed(tuple(rewards))};"
        f" {ignored}"
    )


def _task(names: tuple[str, ...], chosen: str | None, word: str, layout: Layout | None) -> int:
    """Find the column of task ids, which the user chose or which has a usual name."""
    option = option_of("task", word)
    if chosen is not None:
        return _position(names, chosen, option, word)
    found = [i for i, name in enumerate(names) if name.lower() in TASK_NAMES]
    first = [i for i in found if names[i].lower() == TASK_NAMES[0]]
    if layout is not None and not first and layout.task in names:
        at = names.index(layout.task)
        first = [at] if at in found or not found else []
    found = first or found
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"there must be one {word} of task ids, and these could be it:"
            f" {_listed([names[i] for i in found])}; choose it with {option}"
        )
    raise ValueError(
        f"there must be a {word} task_id, or one chosen with {option}; got {_listed(names)}"
    )


def option_of(what: str, word: str) -> str:
    """Name the option that chooses tasks or rewards, of its two names the one of this file."""
    if word == "key":
        return f"--{what}-key"
    return "--task-column" if what == "task" else "--reward-columns"


def _position(names: tuple[str, ...], name: str, option: str, word: str) -> int:
    """Find the column that the user has named."""
    found = [i for i, there in enumerate(names) if there == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{option} names {_shown(name)}, which is there {len(found)} times")
    near = get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}? There are" if near else "there are"
    raise ValueError(f"{option} must name a {word}; got {name!r}; {hint} {_listed(names)}")


def _usual(names: tuple[str, ...], others: list[int], word: str) -> int | None:
    """Find the column with a usual name of rewards; "reward" and "rewards" win over the others."""
    found = [i for i in others if names[i].lower() in (*REWARD_NAMES, *LIST_NAMES)]
    first = [i for i in found if names[i].lower() in (REWARD_NAMES[0], LIST_NAMES[0])]
    found = first or found
    if len(found) > 1:
        raise ValueError(_several(names, found, word))
    return found[0] if found else None


def _the_one(names: tuple[str, ...], found: list[int], layout: Layout, word: str) -> int:
    """Find the one reward of a layout, of several the one with a usual name."""
    usual = [i for i in found if names[i].lower() in REWARD_NAMES]
    found = usual if len(usual) == 1 else found
    if not found:
        raise ValueError(f"{layout.name} must have a {word} of rewards; got {_listed(names)}")
    if len(found) > 1:
        raise ValueError(_several(names, found, word))
    return found[0]


def _several(names: tuple[str, ...], found: list[int], word: str) -> str:
    return (
        f"there must be one {word} of rewards, and these could be it:"
        f" {_listed([names[i] for i in found])}; choose it with {option_of('reward', word)}"
    )


def _check_family(names: tuple[str, ...], others: list[int], word: str) -> None:
    """Refuse, by name, what does not count up under one name with the rest."""
    families: dict[str, dict[int, int]] = {}  # s of s0, s1 → number → position
    strangers = []
    for i in others:
        match = None if _INDEX.fullmatch(names[i]) else _NUMBERED.fullmatch(names[i])
        if match is None or families.setdefault(match[1], {}).setdefault(int(match[2]), i) != i:
            strangers.append(i)
    most = max(map(len, families.values()), default=0)
    largest = [family for family in families.values() if len(family) == most]
    family = largest[0] if len(largest) == 1 else {}
    strangers += [i for other in families.values() if other is not family for i in other.values()]
    members = [names[i] for i in family.values()]
    if strangers:
        reason = "; ".join(_reason(names, i, members, word) for i in sorted(strangers)[:3])
    elif sorted(family) not in ([*range(most)], [*range(1, most + 1)]):
        reason = f"{_listed(members)} do not count up from 0 or 1"
    else:
        return
    remedy = f"{option_of('reward', word)} {','.join(members) or 'NAME'}"
    raise ValueError(f"{reason}; take out what is no reward, or choose the rewards with {remedy}")


def _reason(names: tuple[str, ...], i: int, members: Sequence[str], word: str) -> str:
    """Say why column i is not taken for a sample beside the members of a family."""
    if not names[i]:
        return f"{word} {i + 1} has no name, and looks like an index that pandas wrote"
    if _INDEX.fullmatch(names[i]):
        return f"{word} {names[i]!r} looks like an index that pandas wrote"
    if names.count(names[i]) > 1:
        return f"{word} {names[i]!r} is there {names.count(names[i])} times"
    if members or _NUMBERED.fullmatch(names[i]):
        rest = _listed(members) if members else "the rest"
        return f"{word} {names[i]!r} is not of one family with {rest}"
    return f"{word} {names[i]!r} is neither a usual name of rewards nor one of s0, s1, …"


def _shown(name: str) -> str:
    return name or "a column without a name"


def _listed(names: Sequence[str]) -> str:
    return listed([_shown(name) for name in names])
