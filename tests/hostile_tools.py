"""How many examples a test of hostile input draws: some in every run of the tests, many in `make test-all`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

DRAWN = pytest.mark.parametrize("share", [0.3, pytest.param(5.0, marks=pytest.mark.full)], ids=["some", "many"])


def drawn(usual: int, share: float) -> Callable[[Any], Any]:
    """Settings of hypothesis for a share of the usual number of examples, the same ones in every run."""
    examples = max(1, round(usual * share))
    quiet = [HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=quiet)
