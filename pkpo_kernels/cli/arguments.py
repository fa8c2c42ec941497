"""What typer leaves to be parsed and checked."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from pkpo_kernels.typing import Metric

# How many ks `passk` takes.
_MOST_KS = 100_000


def parsed_ks(text: str) -> list[int]:
    """Parse -k of `passk`: numbers and rising ranges, each k once.

    >>> parsed_ks("1,5,8-10")
    [1, 5, 8, 9, 10]
    """
    ks: dict[int, None] = {}
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, 0)
        if not 1 <= first <= last:
            raise ValueError(
                "-k must be integers of at least 1 and rising ranges, such as 1,5,10 or 1-10; "
                f"got {text!r}"
            )
        if len(ks) + last - first >= _MOST_KS:
            raise ValueError(f"-k must name at most {_MOST_KS} ks in all; got {text!r}")
        ks.update(dict.fromkeys(range(first, last + 1)))
    return list(ks)


def parsed_metric(text: str | None) -> Metric | None:
    """Parse --metric: a metric's name, or its first word.

    >>> parsed_metric("max"), parsed_metric("pass@k"), parsed_metric(None)
    ('max@k', 'pass@k', None)
    """
    names: dict[str | None, Metric] = {name: name for name in get_args(Metric)}
    names |= {"pass": "pass@k", "max": "max@k"}
    if text is not None and text not in names:
        raise ValueError(f"--metric must be pass, max or pass^k; got {text!r}")
    return names.get(text)


def parsed_only(given: Sequence[str]) -> dict[str, str]:
    """Parse --only, which may be given several times.

    >>> parsed_only(["filter=strict-match"])
    {'filter': 'strict-match'}
    """
    only = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not (name and sign) or name in only:
            raise ValueError(f"--only must be KEY=TEXT, each key once; got {text!r}")
        only[name] = value
    return only


def parsed_names(text: str | None) -> list[str] | None:
    """Parse --reward-key, a line of CSV.

    >>> parsed_names('s0,"a,b"')
    ['s0', 'a,b']
    """
    if text is None:
        return None
    wrong = f"--reward-columns must be names such as s0,s1; got {text!r}"
    try:
        names = [name.strip() for name in next(csv.reader([text], strict=True), [])]
    except csv.Error as error:
        raise ValueError(wrong) from error
    if not names:
        raise ValueError(wrong)
    return names


def check_different(paths: Mapping[str, Path | None]) -> None:
    """Refuse one file in two roles, which are the keys; links are followed."""
    seen: dict[str, str] = {}
    for name, path in paths.items():
        if path is not None and (other := seen.setdefault(os.path.realpath(path), name)) != name:
            raise ValueError(f"{name} must be another file than {other}; got {str(path)!r}")
