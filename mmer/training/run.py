"""One training run: fit, keep the best epoch, predict the people kept unseen, score."""

from __future__ import annotations

import contextlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor

import mmer
from mmer.models import EmotionRecognizer, RecognizerConfig
from mmer.training.checkpoint import (
    BEST,
    FORMAT_VERSION,
    LAST,
    AtomicCheckpointIO,
    KeepCheckpoints,
    read_checkpoint,
)
from mmer.training.config import TrainingConfig
from mmer.training.data_module import RecordingsDataModule
from mmer.training.files import replace_file
from mmer.training.losses import balanced_class_weights
from mmer.training.module import MONITOR, RecognizerModule
from mmer.training.prediction import write_predictions
from mmer.training.recognizer import load_recognizer
from mmer.training.scores import score_predictions, selected_scores
from mmer.training.shortcuts import SHORTCUTS

PREDICTIONS = "predictions.npz"
RESULT = "result.json"

Progress = Callable[[int, int, float | None], None]


def train(
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train one model and score it on the people kept unseen.

    The folder receives ``last.ckpt`` and ``best.ckpt`` after every epoch, the logs, and in the end
    ``predictions.npz``, the same of the shortcuts, and ``result.json``.

    Args:
        config: All settings; its protocol section is not looked at.
        folder: Where everything is written.
        resume: Go on from ``last.ckpt`` if there is one; a finished run is only read.
        progress: Called after every epoch with the epochs done, all epochs, and the validation
            score if there is one.

    Returns:
        The contents of ``result.json``: test scores, epochs, seconds, subjects of each part.

    Raises:
        CheckpointError: If ``last.ckpt`` is broken.
        ValueError: If the recordings do not fit the settings.
    """
    if resume and (folder / RESULT).is_file():
        finished: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return finished
    begun = time.monotonic()
    torch.set_num_threads(config.trainer.threads)
    last = folder / LAST if resume and (folder / LAST).is_file() else None
    state = None if last is None else read_checkpoint(last)
    data = RecordingsDataModule(config.data, config.seed)
    data.setup("fit")
    device = "cpu"
    if state is None or not _has_ended(state):
        seed_everything(config.seed, workers=True, verbose=False)
        module = build_module(config, data)
        validates = bool(data.recordings("validation"))
        with _quiet():
            trainer = build_trainer(config, folder, validates=validates, progress=progress)
            _fit(trainer, module, data, last)
        device = str(trainer.strategy.root_device)
    recognizer = load_recognizer(folder / BEST, device)
    predictions = recognizer.predict(data.recordings("test"))
    write_predictions(folder / PREDICTIONS, predictions)
    for name in config.evaluation.shortcuts:
        known = data.recordings("train") + data.recordings("validation")
        said = SHORTCUTS[name](known, data.recordings("test"))
        write_predictions(shortcut_file(folder, name), said)
    scores = score_predictions(predictions, config.evaluation)
    result = {
        "scores": scores,
        "selected_by": selected_scores(scores, config.evaluation),
        "epochs": int(read_checkpoint(folder / LAST)["epoch"]) + 1,
        "best_epoch": int(read_checkpoint(folder / BEST)["epoch"]) + 1,
        "seconds": round(time.monotonic() - begun, 1),
        "parameters": sum(p.numel() for p in recognizer.model.parameters()),
        "subjects": {part: data.subjects(part) for part in ("train", "validation", "test")},
    }
    with replace_file(folder / RESULT) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def shortcut_file(folder: Path, name: str) -> Path:
    """Where a run keeps what a shortcut says of its test recordings."""
    return folder / "shortcuts" / f"{name}.npz"


def build_module(config: TrainingConfig, data: RecordingsDataModule) -> RecognizerModule:
    """Build the model that the settings and the recordings ask for, with fresh weights.

    Args:
        config: All settings.
        data: The recordings, set up.

    Returns:
        The module to train.

    Raises:
        ValueError: If the model's settings are wrong or do not fit the recordings.
    """
    prompts = read_prompts(config.loss.prompts, len(data.class_names))
    recognizer = recognizer_config(config, data, None if prompts is None else prompts.shape[1])
    description = {
        "format_version": FORMAT_VERSION,
        "version": mmer.__version__,
        "config": config.to_dict(),
        "recognizer": recognizer.to_dict(),
        "class_names": list(data.class_names),
        "value_names": list(data.value_names),
        "transforms": data.transforms,
        "subjects": {part: data.subjects(part) for part in ("train", "validation", "test")},
        "groups": {part: data.groups(part) for part in ("train", "validation", "test")},
    }
    return RecognizerModule(
        EmotionRecognizer(recognizer),
        config,
        description,
        class_weights=_class_weights(config, data),
        prompts=prompts,
    )


def recognizer_config(
    config: TrainingConfig, data: RecordingsDataModule, text_dim: int | None = None
) -> RecognizerConfig:
    """Complete the model's settings with what the recordings say.

    Args:
        config: All settings.
        data: The recordings, set up.
        text_dim: Width of the class prompts' embeddings, if there are any.

    Returns:
        The configuration of the recogniser.

    Raises:
        ValueError: If a setting is unknown, out of range, or names a modality that the recordings
            lack.
    """
    settings = dict(config.model)
    for name in ("num_classes", "num_values", "text_dim"):
        if name in settings:
            raise ValueError(f"model.{name}: the recordings say it, leave it out")
    chosen = settings.pop("modalities", {})
    for name in chosen:
        # Runs share their settings: one that this run leaves out may be named.
        if name not in data.all_modalities:
            there = ", ".join(data.all_modalities)
            raise ValueError(f"model.modalities: the recordings have {there}, got {name!r}")
    modalities = {
        name: {**facts, **chosen.get(name, {})} for name, facts in data.modalities.items()
    }
    try:
        return RecognizerConfig.from_dict(
            {
                **settings,
                "modalities": modalities,
                "num_classes": len(data.class_names) or None,
                "num_values": len(data.value_names),
                "text_dim": text_dim,
            }
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"model: {error}") from error


def read_prompts(path: str | None, classes: int) -> Tensor | None:
    """Read the embeddings of the class prompts.

    Args:
        path: A ``.npy`` file of shape (classes, text_dim), or None.
        classes: Number of classes.

    Returns:
        float32 ``(classes, text_dim)``, or None.

    Raises:
        ValueError: If the file is no such array.
    """
    if path is None:
        return None
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"loss.prompts: {path} cannot be read as a .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or len(array) != classes:
        raise ValueError(
            f"loss.prompts: {path} must have shape ({classes}, text_dim), got {np.shape(array)}"
        )
    return torch.from_numpy(array.astype(np.float32))


def build_trainer(
    config: TrainingConfig, folder: Path, *, validates: bool, progress: Progress | None = None
) -> Trainer:
    """Build the Lightning trainer of one run.

    Args:
        config: All settings.
        folder: Where checkpoints and logs go.
        validates: Whether there are people to choose the epoch by.
        progress: See :func:`train`.

    Returns:
        The trainer.
    """
    settings = config.trainer
    callbacks: list[Callback] = []
    if config.optimizer.average_decay:
        callbacks.append(WeightAveraging(avg_fn=_Average(config.optimizer.average_decay)))
    if validates and settings.patience:
        callbacks.append(EarlyStopping(MONITOR, mode="max", patience=settings.patience))
    if progress is not None:
        callbacks.append(_Report(progress))
    elif settings.progress:
        callbacks.append(_ProgressBar())
    callbacks.append(KeepCheckpoints(folder, MONITOR if validates else None))
    logger: Logger = (
        TensorBoardLogger(folder, name="logs")
        if settings.logger == "tensorboard"
        else CSVLogger(folder, name="logs")
    )
    return Trainer(
        max_epochs=settings.max_epochs,
        accelerator=settings.accelerator,
        devices=settings.devices,
        precision=settings.precision,  # type: ignore[arg-type]
        deterministic=settings.deterministic,
        gradient_clip_val=config.optimizer.gradient_clip or None,
        default_root_dir=folder,
        logger=logger,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        limit_val_batches=1.0 if validates else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=progress is None and settings.progress,
        enable_model_summary=False,
        # The loader of an epoch draws its windows from (seed, epoch): each epoch has a new one.
        reload_dataloaders_every_n_epochs=1,
        **settings.options,
    )


class _Average:
    """Exponential moving average, shorter in the first steps so that it forgets the start."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, average: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        decay = min(self.decay, (1.0 + float(updates)) / (10.0 + float(updates)))
        return average.lerp(current, 1.0 - decay)


class _ProgressBar(RichProgressBar):
    """Lightning's progress bar without the number of the log folder."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class _Report(Callback):
    """Tells how far training is."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        score = trainer.callback_metrics.get(MONITOR)
        epochs = int(trainer.max_epochs or 0)
        self.progress(trainer.current_epoch + 1, epochs, None if score is None else float(score))


def _class_weights(config: TrainingConfig, data: RecordingsDataModule) -> Tensor | None:
    wanted, classes = config.loss.class_weights, len(data.class_names)
    if wanted is None or classes == 0:
        return None
    if isinstance(wanted, str):
        return balanced_class_weights(data.class_counts(), config.loss.class_weight_power)
    if len(wanted) != classes:
        raise ValueError(f"loss.class_weights: wanted {classes} weights, got {len(wanted)}")
    return torch.tensor(wanted, dtype=torch.float32)


def _fit(
    trainer: Trainer, module: RecognizerModule, data: RecordingsDataModule, last: Path | None
) -> None:
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    except SystemExit:
        # Lightning turns an interruption into an exit; the command line has its own words for it.
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def _has_ended(checkpoint: dict[str, Any]) -> bool:
    """Whether early stopping ended the training that the checkpoint is of."""
    return any(
        name.startswith(EarlyStopping.__name__) and state.get("stopped_epoch", 0) > 0
        for name, state in checkpoint.get("callbacks", {}).items()
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back Lightning's advice that does not apply here: data in memory, small batches."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        try:
            yield
        finally:
            logger.setLevel(level)
