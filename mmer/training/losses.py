"""The losses a configuration asks for, summed; what is not labelled counts nowhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmer.data import Batch
from mmer.models import RecognizerOutput
from mmer.models.losses import concordance, contrastive, cross_entropy, focal
from mmer.training.config import LossConfig


def classification_loss(
    output: RecognizerOutput, batch: Batch, settings: LossConfig, weight: Tensor | None
) -> Tensor | None:
    """The loss of the class head.

    Args:
        output: What the model said.
        batch: The labels; their mask says which frames count.
        settings: Which loss.
        weight: Weight of each class ``(classes,)``, or None.

    Returns:
        A scalar, 0 where nothing is labelled; None without a class head or class labels.
    """
    if output.logits is None or batch.classes is None:
        return None
    if settings.classes == "focal":
        return focal(
            output.logits,
            batch.classes,
            gamma=settings.focal_gamma,
            mask=batch.label_mask,
            weight=weight,
        )
    return cross_entropy(
        output.logits,
        batch.classes,
        mask=batch.label_mask,
        weight=weight,
        label_smoothing=settings.label_smoothing,
    )


def value_loss(
    output: RecognizerOutput, batch: Batch, settings: LossConfig, threshold: float | None
) -> Tensor | None:
    """The loss of the value head.

    Args:
        output: What the model said.
        batch: The labels; a NaN counts nowhere.
        settings: Which loss.
        threshold: Border between low and high, for the loss "threshold".

    Returns:
        A scalar, 0 where nothing is labelled; None without a value head or value labels.

    Raises:
        ValueError: If the loss is "threshold" and ``threshold`` is None.
    """
    if output.values is None or batch.targets is None:
        return None
    if settings.values == "ccc":
        return concordance(output.values, batch.targets, mask=batch.label_mask)
    labelled = batch.label_mask[..., None] & ~batch.targets.isnan()
    targets = batch.targets.masked_fill(~labelled, 0.0)
    values = output.values.masked_fill(~labelled, 0.0)
    if settings.values == "mse":
        losses = (values - targets).square()
    elif settings.values == "mae":
        losses = (values - targets).abs()
    elif threshold is None:
        raise ValueError('evaluation.threshold: needed by loss.values "threshold", got null')
    else:
        smoothing = settings.label_smoothing
        high = (targets > threshold).to(values.dtype) * (1.0 - smoothing) + 0.5 * smoothing
        losses = functional.binary_cross_entropy_with_logits(
            values - threshold, high, reduction="none"
        )
    return (losses * labelled).sum() / labelled.sum().clamp(min=1)


def contrastive_loss(
    output: RecognizerOutput, batch: Batch, prompts: Tensor, scale: Tensor, weight: Tensor | None
) -> Tensor | None:
    """The loss of the embeddings against the class prompts.

    Args:
        output: What the model said.
        batch: The labels.
        prompts: Embeddings of the class prompts ``(classes, text_dim)``.
        scale: Inverse temperature.
        weight: Weight of each class ``(classes,)``, or None.

    Returns:
        A scalar, 0 where nothing is labelled; None without class labels or text embeddings.
    """
    if output.text_embeddings is None or batch.classes is None:
        return None
    return contrastive(
        output.text_embeddings,
        prompts,
        batch.classes,
        scale=scale,
        mask=batch.label_mask,
        weight=weight,
    )


def balanced_class_weights(counts: Tensor, power: float = 1.0) -> Tensor:
    """Weights that make up for how rare a class is.

    Args:
        counts: Labels of each class ``(classes,)``.
        power: 1 balances wholly, 0.5 half-way, 0 not at all.

    Returns:
        float32 ``(classes,)``: ``(total / (classes that occur * count)) ** power``, 0 for a class
        that never occurs.
    """
    counts = counts.to(torch.float64)
    occurring = (counts > 0).sum().clamp(min=1)
    weights = torch.where(counts > 0, counts.sum() / (occurring * counts.clamp(min=1)), 0.0)
    weights = torch.where(counts > 0, weights**power, 0.0)
    return weights.to(torch.float32)
