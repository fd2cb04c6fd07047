"""What every test shares: seeds, threads, and the refusal to test a build that is not complete."""

from __future__ import annotations

import os
import random

import hypothesis
import numpy as np
import pytest
import torch

from mmer._build import compiled_parts

# The error rule compares two roundings, and which one comes closer is luck in a few cases of a
# million: the examples are the same in every run, so that a red test means a change.
hypothesis.settings.register_profile("mmer", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("mmer")


def pytest_configure(config: pytest.Config) -> None:
    # Tests of a part that was left out can only be skipped: a build that must be complete is
    # checked here, once, so that such skips never pass for success.
    if os.environ.get("MMER_BUILD") == "require":
        parts = compiled_parts()
        for name in ("operators", "native"):
            if parts[name] is not None:
                raise pytest.UsageError(f"MMER_BUILD is require, but {name}: {parts[name]}")
    if "OMP_NUM_THREADS" not in os.environ:
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may draw from the global generator
    torch.manual_seed(0)
