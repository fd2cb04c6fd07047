"""The Lightning module: a recogniser, its losses, its optimiser, its scores on whole recordings."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional

from mmer.data import Batch
from mmer.models import EmotionRecognizer, RecognizerOutput
from mmer.training.checkpoint import SECTION
from mmer.training.config import AugmentationConfig, OptimizerConfig, TrainingConfig
from mmer.training.data_module import RecordingsDataModule
from mmer.training.losses import classification_loss, contrastive_loss, value_loss
from mmer.training.recognizer import Voting, run_model
from mmer.training.scores import score_predictions, selection_score

MONITOR = "validation/score"


class RecognizerModule(LightningModule):
    """Trains an :class:`~mmer.models.EmotionRecognizer`.

    All randomness of an epoch is drawn from (seed, epoch), so training goes on from the end of any
    epoch as if it had never stopped.

    Args:
        model: The recogniser.
        config: All settings.
        description: What a checkpoint carries beside the weights; see
            :func:`mmer.training.recognizer.load_recognizer`.
        class_weights: Weight of each class in the loss ``(classes,)``, or None.
        prompts: Embeddings of the class prompts ``(classes, text_dim)`` for the contrastive loss,
            or None.
    """

    class_weights: Tensor | None
    prompts: Tensor | None

    def __init__(
        self,
        model: EmotionRecognizer,
        config: TrainingConfig,
        description: dict[str, Any],
        class_weights: Tensor | None = None,
        prompts: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.description = description
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("prompts", prompts, persistent=False)
        self._voting: Voting | None = None

    def forward(self, batch: Batch) -> RecognizerOutput:
        """Run the model at the label times of a batch."""
        return run_model(self.model, batch)

    def loss(self, output: RecognizerOutput, batch: Batch) -> dict[str, Tensor]:
        """Compute every loss that applies, by name, and their weighted sum as "loss".

        Args:
            output: What the model said of the batch.
            batch: The labels.

        Returns:
            Scalars; 0 with a zero gradient where nothing is labelled.

        Raises:
            ValueError: If no loss applies: the model has no head for the labels there are.
        """
        settings = self.config.loss
        parts = self._head_losses(output, batch)
        if self.prompts is not None:
            contrast = contrastive_loss(
                output, batch, self.prompts, self.model.text_scale, self.class_weights
            )
            if contrast is not None:
                parts["contrastive"] = contrast
        if not parts:
            raise ValueError("loss: the model has no head for the labels of the recordings")
        if settings.modality_weight and len(output.modality_embeddings) > 1:
            parts["modality"] = self._modality_loss(output, batch)
        weighted = [getattr(settings, f"{name}_weight") * loss for name, loss in parts.items()]
        return {**parts, "loss": torch.stack(weighted).sum()}

    def _head_losses(self, output: RecognizerOutput, batch: Batch) -> dict[str, Tensor]:
        settings = self.config.loss
        losses = {
            "classes": classification_loss(output, batch, settings, self.class_weights),
            "values": value_loss(output, batch, settings, self.config.evaluation.threshold),
        }
        return {name: loss for name, loss in losses.items() if loss is not None}

    def _modality_loss(self, output: RecognizerOutput, batch: Batch) -> Tensor:
        """The mean over modalities of what the heads lose on each alone, where it is present."""
        settings = self.config.loss
        losses = []
        for name, embeddings in output.modality_embeddings.items():
            alone = output._replace(
                logits=None if output.logits is None else self.model.classify(embeddings),
                values=None if output.values is None else self.model.estimate(embeddings),
            )
            present = batch.masks[name].any(dim=1, keepdim=True)
            labelled = dataclasses.replace(batch, label_mask=batch.label_mask & present)
            parts = self._head_losses(alone, labelled)
            losses += [getattr(settings, f"{part}_weight") * loss for part, loss in parts.items()]
        return torch.stack(losses).sum() / len(output.modality_embeddings)

    def on_train_epoch_start(self) -> None:
        """Start the epoch's random numbers from (seed, epoch)."""
        torch.manual_seed(epoch_seed(self.config.seed, self.current_epoch))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Compute the loss of one batch of windows."""
        batch = augment(batch, self.config.augmentation)
        losses = self.loss(self(batch), batch)
        size = len(batch.identifiers)
        for name, loss in losses.items():
            self.log(
                "train/loss" if name == "loss" else f"train/loss_{name}",
                loss,
                on_step=False,
                on_epoch=True,
                batch_size=size,
                prog_bar=name == "loss",
            )
        return losses["loss"]

    def on_validation_epoch_start(self) -> None:
        """Forget the votes of the last validation."""
        self._voting = Voting(self.model)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Collect what the model says of the sliding windows."""
        assert self._voting is not None
        output = self(batch)
        self._voting.add(batch, output)
        self.log(
            "validation/loss", self.loss(output, batch)["loss"], batch_size=len(batch.identifiers)
        )

    def on_validation_epoch_end(self) -> None:
        """Score the soft votes on whole recordings."""
        assert self._voting is not None
        data: RecordingsDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        predictions = self._voting.predictions(data.recordings("validation"))
        self._voting = None
        scores = score_predictions(predictions, self.config.evaluation)
        self.log_dict({f"validation/{name}": score for name, score in scores.items()})
        self.log(MONITOR, selection_score(scores, self.config.evaluation), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Build AdamW with warm-up and the schedule, stepped after every batch."""
        settings = self.config.optimizer
        matrices = [p for p in self.parameters() if p.requires_grad and p.dim() > 1]
        others = [p for p in self.parameters() if p.requires_grad and p.dim() <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=settings.betas,
        )
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, total, settings)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put what :func:`~mmer.training.recognizer.load_recognizer` needs into the checkpoint."""
        checkpoint[SECTION] = self.description


def epoch_seed(seed: int, epoch: int) -> int:
    """Derive the seed of one epoch, unrelated to that of any other."""
    return int(
        np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def learning_rate_factor(step: int, total: int, settings: OptimizerConfig) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then the schedule.

    Args:
        step: Optimiser steps already taken.
        total: Optimiser steps of the whole training.
        settings: Warm-up and schedule.

    Returns:
        Between 0 and 1.
    """
    warmup = math.ceil(settings.warmup_fraction * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def augment(batch: Batch, settings: AugmentationConfig) -> Batch:
    """Change the windows of a batch at random, drawn from PyTorch's generator.

    Args:
        batch: Windows; left as it is.
        settings: How much.

    Returns:
        The batch with changed values; padding stays 0.
    """
    if settings == AugmentationConfig():
        return batch
    changed = {}
    for name, values in batch.values.items():
        mask = batch.masks[name]
        per_window = (values.shape[0], 1, values.shape[2])
        if settings.scale:
            values = values * torch.exp(settings.scale * _normal(per_window, values))
        if settings.shift:
            values = values + settings.shift * _normal(per_window, values)
        if settings.noise:
            values = values + settings.noise * _normal(values.shape, values)
        if settings.dropout:
            values = functional.dropout(values, settings.dropout)
        if settings.time_mask:
            values = values.masked_fill(_random_stretch(mask, settings.time_mask)[..., None], 0.0)
        changed[name] = values.masked_fill(~mask[..., None], 0.0)
    return dataclasses.replace(batch, values=changed)


def _normal(shape: tuple[int, ...] | torch.Size, like: Tensor) -> Tensor:
    return torch.randn(shape, dtype=like.dtype, device=like.device)


def _random_stretch(mask: Tensor, share: float) -> Tensor:
    """One stretch of ``share`` of each row's real steps: bool ``(batch, time)``, True = inside."""
    length = mask.sum(dim=1, keepdim=True)
    covered = (share * length).long()
    start = (torch.rand(len(mask), 1, device=mask.device) * (length - covered + 1)).long()
    position = mask.cumsum(dim=1) - 1
    return mask & (position >= start) & (position < start + covered)
