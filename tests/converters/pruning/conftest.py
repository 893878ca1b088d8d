"""Tests of pruning convert tiny models again and again."""

import pytest


@pytest.fixture(autouse=True)
def _quick(quick_conversions: None) -> None:
    pass
