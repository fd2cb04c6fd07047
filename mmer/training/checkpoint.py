"""Checkpoints: written in one move, read without running anything, refused by name when broken."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from mmer.training.files import replace_file

LAST = "last.ckpt"
BEST = "best.ckpt"
SECTION = "mmer"
FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint file that cannot be used; the message names the file and what is wrong."""


def write_checkpoint(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint: whatever happens, ``path`` holds the old file or the whole new one.

    Args:
        checkpoint: Tensors and plain Python values.
        path: File to write; its folder is created.
    """
    with replace_file(path) as temporary:
        torch.save(checkpoint, temporary)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of this project onto the CPU; nothing in the file is executed.

    Args:
        path: A ``.ckpt`` file written in training.

    Returns:
        The checkpoint: "state_dict", the "mmer" section, and the training state.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is truncated, corrupt, or no checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        # torch.load does not look at the checksums.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"checksum of {damaged}")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: truncated, corrupt or not a checkpoint ({reason})"
        ) from error
    for key in ("state_dict", SECTION):
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), dict):
            raise CheckpointError(f"{path}: not a checkpoint of mmer, it has no section {key!r}")
    version = checkpoint[SECTION].get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version is {version!r}, this version of mmer reads {FORMAT_VERSION}"
        )
    return checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's door to :func:`write_checkpoint` and :func:`read_checkpoint`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write beside the file, then move."""
        write_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read with ``weights_only=True`` whatever is asked for."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the file if it is there."""
        Path(path).unlink(missing_ok=True)


class KeepCheckpoints(Checkpoint):
    """Keeps the last finished epoch and the best one.

    Args:
        folder: Where ``last.ckpt`` and ``best.ckpt`` are written.
        monitor: Name of the logged score that says which epoch is best (larger is better); None
            takes the last epoch as the best.
    """

    def __init__(self, folder: str | os.PathLike[str], monitor: str | None) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.monitor = monitor
        self.best_score: float | None = None
        self.best_epoch: int | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoints of the epoch that has just ended, the validation included."""
        score = None
        if self.monitor is not None:
            score = float(trainer.callback_metrics[self.monitor])
        if score is None or self.best_score is None or score > self.best_score:
            self.best_score, self.best_epoch = score, trainer.current_epoch
            trainer.save_checkpoint(self.folder / BEST)
        trainer.save_checkpoint(self.folder / LAST)

    def state_dict(self) -> dict[str, Any]:
        """The best score so far and its epoch."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.best_score = state_dict["best_score"]
        self.best_epoch = state_dict["best_epoch"]
