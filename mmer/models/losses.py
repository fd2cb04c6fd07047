"""Losses over frames of which only some are labelled.

All take any leading dimensions, skip what is not labelled (class -1, value NaN, or mask False)
whatever stands there, and give 0 with a zero gradient when nothing is labelled.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmer.layers.checks import check_number, check_probability

__all__ = ["concordance", "contrastive", "cross_entropy", "focal"]


def cross_entropy(
    logits: Tensor,
    classes: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy over the labelled frames, weighted by class as in ``nn.CrossEntropyLoss``.

    Args:
        logits: (..., frames, classes).
        classes: (..., frames) int64, -1 where unlabelled.
        mask: (..., frames) bool, False where a label is not to count.
        weight: (classes,) weight of each class.
        label_smoothing: share of the target that is spread evenly over all classes.

    Returns:
        Scalar, float32 at least.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: an argument has the wrong shape, or a class is outside ``-1 .. classes - 1``.
    """
    check_probability("label_smoothing", label_smoothing)
    logits, classes, labelled = _labelled_classes(logits, classes, mask)
    _check_weight(weight, logits)
    losses = functional.cross_entropy(
        logits, classes, weight=weight, reduction="none", label_smoothing=label_smoothing
    )
    share = labelled.to(logits.dtype) if weight is None else weight[classes] * labelled
    return (losses * labelled).sum() / _at_least_some(share.sum())


def focal(
    logits: Tensor,
    classes: Tensor,
    *,
    gamma: float = 2.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Focal loss ``-(1 - p)^gamma log p`` of the true class p (Lin et al. 2017, eq. 4).

    Averaged over the labelled frames; with ``gamma = 0`` it is :func:`cross_entropy`.

    Args:
        logits: (..., frames, classes).
        classes: (..., frames) int64, -1 where unlabelled.
        gamma: how strongly frames that are classified well already are played down.
        mask: (..., frames) bool, False where a label is not to count.
        weight: (classes,) weight of each class, the paper's alpha.

    Returns:
        Scalar, float32 at least.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: an argument has the wrong shape, ``gamma`` is negative, or a class is outside
            ``-1 .. classes - 1``.
    """
    check_number("gamma", gamma, low=0.0)
    logits, classes, labelled = _labelled_classes(logits, classes, mask)
    _check_weight(weight, logits)
    log_probability = logits.log_softmax(dim=-1).gather(-1, classes[:, None]).squeeze(-1)
    share = labelled.to(logits.dtype) if weight is None else weight[classes] * labelled
    # 1 - p by expm1 keeps its digits, and the clamp the gradient finite, where p is nearly 1.
    miss = (-torch.expm1(log_probability)).clamp(min=torch.finfo(logits.dtype).tiny)
    losses = -miss.pow(gamma) * log_probability
    return (losses * share).sum() / _at_least_some(share.sum())


def concordance(
    predictions: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """One minus the concordance correlation coefficient (Lin 1989), averaged over values.

    ``CCC = 2 cov / (var + var + (mean - mean)^2)`` over all labelled frames of the batch, for each
    value of its own.

    Args:
        predictions: (..., frames, values).
        targets: (..., frames, values), NaN where unlabelled.
        mask: (..., frames) bool, False where labels are not to count.
        eps: added to the denominator, so that constants that agree have a loss and a gradient.

    Returns:
        Scalar, float32 at least, between 0 and 2.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: an argument has the wrong shape.
    """
    if not predictions.is_floating_point():
        raise TypeError(f"predictions must be floating point, got {predictions.dtype}")
    if predictions.dim() < 2 or targets.shape != predictions.shape:
        raise ValueError(
            "predictions and targets must have one shape (..., frames, values), "
            f"got {tuple(predictions.shape)} and {tuple(targets.shape)}"
        )
    labelled = ~targets.isnan()
    if mask is not None:
        _check_mask(mask, predictions.shape[:-1])
        labelled = labelled & mask[..., None]
    labelled = labelled.flatten(0, -2)
    predictions = _wide(predictions).flatten(0, -2).masked_fill(~labelled, 0.0)
    targets = _wide(targets).flatten(0, -2).masked_fill(~labelled, 0.0)
    count = labelled.sum(dim=0)
    divisor = count.clamp(min=1)
    mean_prediction, mean_target = predictions.sum(dim=0) / divisor, targets.sum(dim=0) / divisor
    deviation = (predictions - mean_prediction).masked_fill(~labelled, 0.0)
    target_deviation = (targets - mean_target).masked_fill(~labelled, 0.0)
    covariance = (deviation * target_deviation).sum(dim=0) / divisor
    spread = (deviation.square() + target_deviation.square()).sum(dim=0) / divisor
    coefficient = 2.0 * covariance / (spread + (mean_prediction - mean_target).square() + eps)
    has_labels = count > 0
    losses = (1.0 - coefficient).masked_fill(~has_labels, 0.0)
    return losses.sum() / has_labels.sum().clamp(min=1)


def contrastive(
    embeddings: Tensor,
    prompts: Tensor,
    classes: Tensor,
    *,
    scale: Tensor | float,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    symmetric: bool = False,
) -> Tensor:
    """Contrastive loss against embeddings of class prompts (InfoNCE, as in CLIP).

    The scaled cosines of an embedding with all prompts are its logits (Radford et al. 2021). With
    ``symmetric``, averaged with the other direction: each prompt that has frames picks them out of
    all labelled frames, all of its frames being right.

    Args:
        embeddings: (..., frames, text_dim), of frames or of pooled sequences:
            ``RecognizerOutput.text_embeddings``.
        prompts: (classes, text_dim), one row for each class, say CLIP's text features of "a face
            showing sadness".
        classes: (..., frames) int64, -1 where unlabelled.
        scale: inverse temperature: ``EmotionRecognizer.text_scale``, learnable, or a number.
        mask: (..., frames) bool, False where a label is not to count.
        weight: (classes,) weight of each class.
        symmetric: average with the direction from prompts to frames.

    Returns:
        Scalar, float32 at least.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: an argument has the wrong shape, or a class is outside ``-1 .. classes - 1``.
    """
    if prompts.dim() != 2 or embeddings.dim() < 2 or prompts.shape[1] != embeddings.shape[-1]:
        raise ValueError(
            f"prompts must have shape (classes, text_dim) with the text_dim of embeddings, "
            f"{tuple(embeddings.shape)}, got {tuple(prompts.shape)}"
        )
    # Unlabelled rows are emptied first: a NaN there would survive the normalisation's gradient.
    flat, classes, labelled = _labelled_classes(embeddings, classes, mask, prompts.shape[0])
    flat = functional.normalize(flat, dim=-1)
    logits = scale * (flat @ functional.normalize(prompts.to(flat.dtype), dim=-1).t())
    loss = cross_entropy(logits, classes, mask=labelled, weight=weight)
    if not symmetric:
        return loss
    belongs = functional.one_hot(classes, prompts.shape[0]).to(logits.dtype) * labelled[:, None]
    lowest = torch.finfo(logits.dtype).min
    log_share = logits.masked_fill(~labelled[:, None], lowest).log_softmax(dim=0)
    members = belongs.sum(dim=0)
    per_class = -(log_share.masked_fill(belongs == 0, 0.0)).sum(dim=0) / members.clamp(min=1)
    share = (members > 0).to(logits.dtype)
    if weight is not None:
        share = share * weight
    return 0.5 * (loss + (per_class * share).sum() / _at_least_some(share.sum()))


def _labelled_classes(
    logits: Tensor, classes: Tensor, mask: Tensor | None, num_classes: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Flatten the frames; what is not labelled becomes zeros of class 0."""
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if logits.dim() < 2:
        raise ValueError(
            f"logits must have shape (..., frames, classes), got {tuple(logits.shape)}"
        )
    if classes.dtype != torch.int64:
        raise TypeError(f"classes must be int64, got {classes.dtype}")
    if classes.shape != logits.shape[:-1]:
        raise ValueError(
            f"classes must have shape {tuple(logits.shape[:-1])}, got {tuple(classes.shape)}"
        )
    labelled = classes >= 0
    if mask is not None:
        _check_mask(mask, classes.shape)
        labelled = labelled & mask
    labelled = labelled.flatten()
    logits = _wide(logits).flatten(0, -2).masked_fill(~labelled[:, None], 0.0)
    classes = classes.flatten().masked_fill(~labelled, 0)
    num_classes = logits.shape[-1] if num_classes is None else num_classes
    # On another device the comparison would wait for it, and the device itself notices.
    readable = classes.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and bool((classes >= num_classes).any()):
        raise ValueError(f"classes must lie in -1 .. {num_classes - 1}, got {int(classes.max())}")
    return logits, classes, labelled


def _wide(x: Tensor) -> Tensor:
    """``x`` in float32 at least: half precision cannot hold sums over a batch."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_mask(mask: Tensor, shape: torch.Size) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool with True = labelled, got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"mask must have shape {tuple(shape)}, got {tuple(mask.shape)}")


def _check_weight(weight: Tensor | None, logits: Tensor) -> None:
    if weight is not None and weight.shape != logits.shape[-1:]:
        raise ValueError(f"weight must have shape ({logits.shape[-1]},), got {tuple(weight.shape)}")


def _at_least_some(total: Tensor) -> Tensor:
    """``total``, or 1 if it is 0: what is divided by it is 0 then."""
    return torch.where(total > 0, total, torch.ones_like(total))
