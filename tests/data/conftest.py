"""The shared data sets, where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmer.data import find_data_folder
from mmer.data.shared_sets import ORIGINALS


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the shared data sets; a test that asks for it is skipped where it is not."""
    try:
        folder = find_data_folder()
    except FileNotFoundError as error:
        reason = str(error).partition(" The originals")[0]
        pytest.skip(f"the shared data sets are not here: {reason}")
    missing = [name for name in ORIGINALS if not (folder / f"{name}.npz").is_file()]
    if missing:
        pytest.skip(f"the shared data sets are not complete: {folder} lacks {', '.join(missing)}")
    return folder
