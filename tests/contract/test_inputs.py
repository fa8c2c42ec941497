"""Rewards may lie in memory as they like, and stay as they are."""

from __future__ import annotations

import numpy as np
from subjects import Subject


class TestInputsStayAsTheyAre:
    def test_read_only_strided_and_unmodified(
        self, subject: Subject, rng: np.random.Generator
    ) -> None:
        values = rng.standard_normal((6, 24)).astype(np.float32)
        strided = subject.library.strided(values)
        before = subject.numpy(strided).copy()
        plain = subject.array(before.astype(np.float32))
        assert strided.shape == (3, 8)
        np.testing.assert_array_equal(subject.transform(strided, 3), subject.transform(plain, 3))
        np.testing.assert_array_equal(subject.numpy(strided), before)
