"""The launches and recipes of the integrations' README, as a user copies them."""

from __future__ import annotations

import re
from pathlib import Path

import pkpo_kernels.integrations

README = Path(pkpo_kernels.integrations.__file__).with_name("README.md")


def example(section: str, language: str = "python") -> str:
    """Find the first block of code in a language below the heading of a section."""
    text = README.read_text()
    (body,) = re.findall(rf"^##+ {re.escape(section)}\n(.*?)(?=^##+ |\Z)", text, re.M | re.S)
    (first, *_) = re.findall(rf"^```{language}\n(.*?)^```", body, re.M | re.S)
    return first
