"""What the tests of training share: one finished run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmer.training.protocol import run_experiment
from tests.training.cases import tiny_config


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a finished training run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_experiment(tiny_config(), folder)
    return folder
