"""Losses, schedule, augmentation: what is padded, unlabelled or missing has no say."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from mmer.data import Batch, SlidingWindows, collate
from mmer.models import EmotionRecognizer, ModalityConfig, RecognizerConfig, RecognizerOutput
from mmer.models.losses import concordance, focal
from mmer.training.config import AugmentationConfig, LossConfig, OptimizerConfig
from mmer.training.data_module import RecordingsDataModule
from mmer.training.losses import balanced_class_weights, classification_loss, value_loss
from mmer.training.module import RecognizerModule, augment, epoch_seed, learning_rate_factor
from mmer.training.run import build_module
from tests.training.cases import tiny_config


def batch(**changes: Any) -> Batch:
    mask = torch.arange(6)[None] < torch.tensor([[6], [4]])
    plain = Batch(
        values={"a": torch.randn(2, 6, 3) * mask[..., None]},
        masks={"a": mask},
        times={"a": torch.arange(6.0).expand(2, -1)},
        label_times=torch.arange(6.0).expand(2, -1),
        label_mask=mask,
        classes=torch.tensor([[0, 1, 0, 1, 0, 1], [1, 1, -1, 0, -1, -1]]),
        targets=torch.randn(2, 6, 2),
        identifiers=["A", "B"],
        starts=torch.zeros(2, dtype=torch.float64),
    )
    return dataclasses.replace(plain, **changes)


def output(**changes: Any) -> RecognizerOutput:
    plain = RecognizerOutput(
        logits=torch.randn(2, 6, 2),
        values=torch.randn(2, 6, 2),
        embeddings=torch.zeros(2, 6, 4),
        weights=torch.ones(2, 6, 1),
        modality_embeddings={},
        text_embeddings=None,
    )
    return plain._replace(**changes)


def test_balanced_weights_make_up_for_rarity() -> None:
    counts = torch.tensor([30, 10, 0])
    weights = balanced_class_weights(counts)
    torch.testing.assert_close(weights, torch.tensor([40 / 60, 40 / 20, 0.0]))
    torch.testing.assert_close(balanced_class_weights(counts, 0.5), weights.sqrt())
    assert balanced_class_weights(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
def test_class_loss_is_the_one_asked_for(kind: Any) -> None:
    settings = LossConfig(classes=kind, label_smoothing=0.0, focal_gamma=1.5)
    said, known, weight = output(), batch(), torch.tensor([0.5, 2.0])
    loss = classification_loss(said, known, settings, weight)
    assert said.logits is not None
    assert known.classes is not None
    gamma = 1.5 if kind == "focal" else 0.0
    expected = focal(said.logits, known.classes, gamma=gamma, mask=known.label_mask, weight=weight)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", ["ccc", "mse", "mae", "threshold"])
def test_value_loss_skips_what_is_unlabelled(kind: Any) -> None:
    settings = LossConfig(values=kind, label_smoothing=0.2)
    said, known = output(), batch()
    assert said.values is not None
    assert known.targets is not None
    known.targets[0, 2] = math.nan
    values = said.values.requires_grad_()
    loss = value_loss(said, known, settings, 0.3)
    assert loss is not None
    keep = known.label_mask[..., None] & ~known.targets.isnan()
    v, t = values[keep], known.targets[keep]
    high = (t > 0.3) * 0.8 + 0.1
    cross = -(high * (v - 0.3).sigmoid().log() + (1 - high) * (0.3 - v).sigmoid().log())
    expected = {
        "ccc": concordance(values, known.targets, mask=known.label_mask),
        "mse": (v - t).square().mean(),
        "mae": (v - t).abs().mean(),
        "threshold": cross.mean(),
    }[kind]
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, values)
    assert gradient.isfinite().all()
    assert (gradient[~keep] == 0).all()


@pytest.mark.parametrize("kind", ["ccc", "mse", "mae", "threshold"])
def test_nothing_labelled_gives_zero(kind: Any) -> None:
    known = batch(targets=torch.full((2, 6, 2), math.nan), classes=torch.full((2, 6), -1))
    said = output()
    assert said.values is not None
    said.values.requires_grad_()
    loss = value_loss(said, known, LossConfig(values=kind), 5.0)
    assert loss is not None
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, said.values)[0].abs().sum() == 0
    assert classification_loss(said, known, LossConfig(), None).item() == 0.0  # type: ignore[union-attr]


def test_heads_and_labels_may_be_absent() -> None:
    assert classification_loss(output(logits=None), batch(), LossConfig(), None) is None
    assert classification_loss(output(), batch(classes=None), LossConfig(), None) is None
    assert value_loss(output(values=None), batch(), LossConfig(), None) is None
    assert value_loss(output(), batch(targets=None), LossConfig(), None) is None
    with pytest.raises(ValueError, match=r"evaluation.threshold: needed by loss.values"):
        value_loss(output(), batch(), LossConfig(values="threshold"), None)


def test_missing_modality_has_no_say_in_the_modality_loss() -> None:
    config = RecognizerConfig(
        modalities={"a": ModalityConfig(3, 1.0), "b": ModalityConfig(2, 1.0)},
        num_classes=2,
        embed_dim=8,
        num_heads=2,
        encoder_layers=1,
        dropout=0.0,
    )
    model = EmotionRecognizer(config)
    module = RecognizerModule(model, tiny_config(loss__modality_weight=1.0), {})
    known = batch(targets=None)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    known.values["b"], known.masks["b"] = torch.zeros(2, 5, 2), mask
    known.times["b"] = torch.arange(5.0).expand(2, -1)
    losses = module.loss(module(known), known)
    torch.testing.assert_close(losses["modality"], 0.5 * losses["classes"])


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_learning_rate_rises_then_follows_the_schedule(schedule: Any) -> None:
    settings = OptimizerConfig(warmup_fraction=0.2, schedule=schedule)
    factors = [learning_rate_factor(step, 50, settings) for step in range(51)]
    assert all(a < b for a, b in pairwise(factors[:11]))
    assert factors[10] == 1.0
    if schedule == "constant":
        assert set(factors[10:]) == {1.0}
    else:
        assert factors[30] == pytest.approx(0.5)
        assert factors[50] == pytest.approx(0.0)
    assert learning_rate_factor(0, 50, OptimizerConfig(warmup_fraction=0.0)) == 1.0


def test_epoch_seeds_all_differ() -> None:
    seeds = {epoch_seed(seed, epoch) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("kind", ["noise", "shift", "scale", "dropout", "time_mask"])
def test_augmentation_keeps_padding_and_the_original(kind: str) -> None:
    known = batch()
    before = known.values["a"].clone()
    changed = augment(known, AugmentationConfig(**{kind: 0.4}))
    assert not torch.equal(changed.values["a"], before)
    assert (changed.values["a"][~known.masks["a"]] == 0).all()
    torch.testing.assert_close(known.values["a"], before)
    assert augment(known, AugmentationConfig()) is known


def test_time_mask_covers_one_stretch() -> None:
    long = Batch(**{**batch().__dict__, "values": {"a": torch.ones(2, 6, 3)}})
    changed = augment(long, AugmentationConfig(time_mask=0.5)).values["a"][..., 0]
    assert (changed[0] == 0).sum() == 3
    assert (changed[1, :4] == 0).sum() == 2
    hidden = np.flatnonzero(changed[0].numpy() == 0)
    assert hidden[-1] - hidden[0] == 2


def test_only_matrices_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    data = RecordingsDataModule(config.data, config.seed)
    data.setup("fit")
    module = build_module(config, data)
    monkeypatch.setattr(
        RecognizerModule, "trainer", type("T", (), {"estimated_stepping_batches": 9})()
    )
    optimizer = module.configure_optimizers()["optimizer"]
    decayed, others = optimizer.param_groups
    assert all(p.dim() > 1 for p in decayed["params"])
    assert all(p.dim() <= 1 for p in others["params"])
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    windows = SlidingWindows(data.recordings("test"), 100, 40)
    known = collate([windows[0], windows[1]])
    losses = module.loss(module(known), known)
    expected = losses["classes"] + 0.3 * losses["modality"]
    torch.testing.assert_close(losses["loss"], expected)
