"""What of the contract is slow, where every test is programs to compile or kernels to interpret.

Patterns find names of tests without their subject: the_reference[2-257-sloo], not
the_reference[pallas-2-257-sloo].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from subjects import DEVICE, Subject


def _names(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


# A k that is an operand: the subjects with a static one are asked for it with a k a row.
_QUICK_OF_DYNAMIC_K = _names(
    r"enumeration\[6-(sloo_minus_one|passk_training)",
    r"max_at_k_is\w+\[6",
    r"the_reference\[3-8-sloo\]",
    r"equal_bits\[16-sloo_minus_one",
    r"test_k_",
    r"no_rows",
    r"beyond_all\w+\[(clip|zero)",
    r"default_float\[bool\]",
    r"becomes_nan\[sloo_minus_one",
    r"max_at_k_with",
    r"only_results",
)
# More shapes, and more numbers, for programs of the same code.
_SHAPES = (
    r"enumeration\[[1-4]",
    r"the_reference\[(1|2|17|3-7)",
    r"component_by",
    r"equal_bits",
    r"every_row\[(?!sloo-)\w+-(nan|clip)",
    r"1025",
)
# Every estimator is asked for results; for what no coefficient changes one is.
_OTHER_ESTIMATORS = (
    r"(enumeration\[[1-4]|the_reference\[(1|3-7)|in_its_row|in_float64|scales_results|permuting"
    r"|equal_bits|exactly_zero|as_large).*[\[-](s|sloo|centered|passk_training)(-\w+)?\]"
)
_NUMBERS = (r"exactly_zero", r"drops_out", r"nan_stays", r"as_large", r"identities", r"repeats")
# Of groups by id, where their sets of options are programs or kernels.
_GROUPS = (
    r"alone\[(?!sloo_minus_one-batch|passk_training-batch|sloo-sum|s-mean)",
    r"each_entry\[(?!nan-sloo_minus_one|clip-passk|zero-centered)",
    r"in_its_group\[passk",
)
# `make test` leaves to `make test-all` all but these …
_QUICK = {
    # What compiled kernels are not asked there, and one of each kind of the rest.
    "triton": _names(
        r"the_reference\[(2-1024|3-8)-sloo_minus_one",
        r"test_k_",
        r"judged",
        r"no_rows",
        r"every_row\[(sloo_minus_one-zero-mean|sloo-nan-sum)\]",
        r"default_float\[bool\]",
        r"becomes_nan\[sloo_minus_one\]",
        r"left_out_of\w+\[zero\]",
        r"max_at_k_of_rows_that",
        r"samples_of_several",
        r"test_blocks",
    ),
    "pallas": _names(
        r"enumeration\[6(-(sloo_minus_one|passk_training))?\]",
        r"equal_bits\[16-sloo_minus_one\]",
        r"exactly_zero\[3e-39-sloo_minus_one\]",
        r"test_k_",
        r"judged",
        r"no_rows",
        r"as_large\w+\[sloo-sum\]",
        r"every_row\[(sloo_minus_one-zero-mean|sloo-nan-sum)\]",
        r"default_float\[bool\]",
        r"becomes_nan\[sloo_minus_one\]",
        r"left_out_of\w+\[zero\]",
        r"max_at_k_of_rows_that",
        r"alone\[sloo_minus_one-batch",
        r"each_entry\[nan-sloo_minus_one",
        r"test_blocks",
    ),
    "xla-traced": _QUICK_OF_DYNAMIC_K,
    "triton-hidden-k": _names(r"enumeration\[6-sloo_minus_one", r"beyond_all", r"no_rows"),
    "ptx-hidden-k": _QUICK_OF_DYNAMIC_K,
}
# … or these: more numbers and shapes for the same code.
_SLOW = {
    "xla": _names(
        r"the_reference\[(17|2)-\d+-(?!sloo_minus_one)",
        r"every_row\[(?!sloo-)\w+-(nan|clip)",
        r"1025",
        r"large_matrices",
        _OTHER_ESTIMATORS,
        *_GROUPS,
    ),
}
# What JAX is strict about does not depend on numbers: see below.
_SLOW["xla-strict"] = _names(
    *_SHAPES,
    *_NUMBERS,
    *_GROUPS,
    r"large_matrices|any_rewards|permuting|scales_results|in_float64|enumeration",
    r"becomes_nan\[(?!sloo_)|every_row\[(?!sloo)",
)
# And of what is slow these are for a release: rows of hundreds of samples in Pallas's interpreter,
# and more numbers for a program or a kernel that has been asked already.
_RELEASE = {
    "pallas": _names(
        r"1024|1025|16384|large_matrices|repeats",
        r"permuting\w+\[(?!sloo_)",
        r"-257-",
        r"17-33-(?!sloo_)|[\[-][1-4]-(s|centered)\]|component_by",
        r"enumeration\[[124]-(sloo\]|passk)",
        r"any_rewards",
        r"every_row\[(s|cent)",
        r"that_vanish",
        r"\[-nan-",
        r"get_equal_bits\[$",
        r"alone\[(?!sloo-mean|passk_training-batch)",
        r"each_entry\[(?!clip-passk)",
    ),
    "xla-strict": _SLOW["xla-strict"],
    "xla": _names(
        r"every_row\[(s|centered)-",
        r"(the_reference|1025).*-(s|centered)\]",
        *_GROUPS,
    ),
    "xla-traced": _names(
        *_SHAPES,
        *_NUMBERS,
        *_GROUPS,
        r"large_matrices|permuting|scales_results|in_float64|come_back",
        r"every_row\[(?!sloo)",
    ),
    "triton": _names(
        r"enumeration\[[1-4]",
        r"the_reference\[3-|-(33|257)-(?!sloo_)",
        r"every_row\[(?!sloo-)\w+-(nan|clip)",
        r"equal_bits\[16",
        r"scaling",
        r"permuting",
        r"large_matrices",
        *_NUMBERS,
        *_GROUPS,
    ),
    "triton-hidden-k": _names(r""),  # all of it
    "ptx-hidden-k": _names(r""),  # all of it
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    if DEVICE == "cuda":
        return
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        subject: Subject = item.callspec.params["subject"]  # type: ignore[attr-defined]
        name = re.sub(rf"\[{subject.id}(-|\])", "[", item.name)
        quick, slow = _QUICK.get(subject.id), _SLOW.get(subject.id)
        if (quick and not quick.search(name)) or (slow and slow.search(name)):
            release = _RELEASE.get(subject.id)
            item.add_marker("release" if release and release.search(name) else "slow")
