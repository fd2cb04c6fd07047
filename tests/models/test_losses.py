"""Losses against their definitions, and what is not labelled has no say."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mmer.models import losses

CLASSES, FRAMES = 3, 7


def labels() -> Tensor:
    return torch.tensor([[0, 2, 1, 1, -1, 0, 2], [-1, -1, 1, 0, 2, 2, -1]])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_torch(weighted: bool, label_smoothing: float) -> None:
    logits, classes = torch.randn(2, FRAMES, CLASSES), labels()
    mask = torch.rand(2, FRAMES) < 0.7
    weight = torch.tensor([1.0, 3.0, 0.5]) if weighted else None
    got = losses.cross_entropy(
        logits, classes, mask=mask, weight=weight, label_smoothing=label_smoothing
    )
    wanted = functional.cross_entropy(
        logits.flatten(0, 1),
        classes.masked_fill(~mask, -1).flatten(),
        weight=weight,
        ignore_index=-1,
        label_smoothing=label_smoothing,
    )
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("weighted", [False, True])
def test_focal_is_its_definition_and_cross_entropy_without_gamma(weighted: bool) -> None:
    logits, classes = torch.randn(2, FRAMES, CLASSES), labels()
    weight = torch.tensor([1.0, 3.0, 0.5]) if weighted else None
    torch.testing.assert_close(
        losses.focal(logits, classes, gamma=0.0, weight=weight),
        losses.cross_entropy(logits, classes, weight=weight),
    )
    known = classes >= 0
    p = logits.softmax(dim=-1)[known].gather(1, classes[known][:, None])[:, 0]
    share = torch.ones(3)[classes[known]] if weight is None else weight[classes[known]]
    wanted = (share * -((1 - p) ** 2) * p.log()).sum() / share.sum()
    torch.testing.assert_close(losses.focal(logits, classes, weight=weight), wanted)


@given(gamma=st.floats(0.0, 5.0), size=st.sampled_from([1.0, 100.0, 1e4]))
def test_focal_stays_finite_when_sure(gamma: float, size: float) -> None:
    logits = (size * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).requires_grad_()
    loss = losses.focal(logits, torch.tensor([0, 0]), gamma=gamma)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_concordance_is_lins_coefficient() -> None:
    predictions, targets = torch.randn(2, FRAMES, 2).double(), torch.randn(2, FRAMES, 2).double()
    targets[0, 3, 0] = targets[1, 2, 1] = math.nan
    mask = torch.ones(2, FRAMES, dtype=torch.bool)
    mask[1, 5:] = False
    wanted = []
    for value in range(2):
        known = ~targets[..., value].isnan() & mask
        x, y = predictions[..., value][known], targets[..., value][known]
        covariance = ((x - x.mean()) * (y - y.mean())).mean()
        spread = x.var(correction=0) + y.var(correction=0) + (x.mean() - y.mean()) ** 2
        wanted.append(1 - 2 * covariance / spread)
    got = losses.concordance(predictions, targets, mask=mask)
    torch.testing.assert_close(got, torch.stack(wanted).mean(), rtol=1e-6, atol=1e-6)


def test_concordance_of_agreement_opposition_and_values_without_labels() -> None:
    targets = torch.randn(2, FRAMES, 2)
    assert losses.concordance(targets, targets) == pytest.approx(0.0, abs=1e-5)
    centred = targets - targets.mean(dim=(0, 1))
    assert losses.concordance(-centred, centred) == pytest.approx(2.0, abs=1e-5)
    targets[..., 1] = math.nan
    assert losses.concordance(torch.nan_to_num(targets), targets) == pytest.approx(0.0, abs=1e-5)
    constant = torch.zeros(2, FRAMES, 1, requires_grad=True)
    loss = losses.concordance(constant, torch.zeros(2, FRAMES, 1))
    loss.backward()
    assert loss == 1.0
    assert constant.grad.isfinite().all()


def test_contrastive_is_cross_entropy_over_scaled_cosines() -> None:
    embeddings, prompts = torch.randn(2, FRAMES, 5), torch.randn(CLASSES, 5)
    cosines = functional.cosine_similarity(embeddings[:, :, None], prompts, dim=-1)
    wanted = losses.cross_entropy(20.0 * cosines, labels())
    torch.testing.assert_close(
        losses.contrastive(embeddings, prompts, labels(), scale=20.0), wanted
    )


def test_symmetric_contrastive_is_clips_loss_when_each_class_has_one_item() -> None:
    embeddings, prompts = torch.randn(4, 1, 5), torch.randn(4, 5)
    classes = torch.tensor([[2], [0], [3], [1]])
    logits = 7.0 * functional.normalize(embeddings[:, 0], dim=-1) @ functional.normalize(prompts).T
    forward = functional.cross_entropy(logits, classes[:, 0])
    backward = functional.cross_entropy(logits.T, classes[:, 0].argsort())
    got = losses.contrastive(embeddings, prompts, classes, scale=7.0, symmetric=True)
    torch.testing.assert_close(got, 0.5 * (forward + backward))


def test_symmetric_contrastive_counts_all_frames_of_a_class_and_skips_classes_without_any() -> None:
    embeddings, prompts = torch.randn(5, 6), torch.randn(3, 6)
    classes = torch.tensor([1, 0, 1, -1, 1])
    logits = functional.normalize(embeddings) @ functional.normalize(prompts).T
    shares = logits[classes >= 0].log_softmax(dim=0)
    known = classes[classes >= 0]
    backward = -0.5 * (shares[known == 0, 0].mean() + shares[known == 1, 1].mean())
    forward = losses.contrastive(embeddings, prompts, classes, scale=1.0)
    got = losses.contrastive(embeddings, prompts, classes, scale=1.0, symmetric=True)
    torch.testing.assert_close(got, 0.5 * (forward + backward))


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda x, classes, mask: losses.cross_entropy(x, classes, mask=mask),
    "weighted": lambda x, classes, mask: losses.cross_entropy(
        x, classes, mask=mask, weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1
    ),
    "focal": lambda x, classes, mask: losses.focal(x, classes, mask=mask),
    "concordance": lambda x, classes, mask: losses.concordance(
        x,
        torch.where(classes < 0, math.nan, classes.float())[..., None].expand(-1, -1, 3),
        mask=mask,
    ),
    "contrastive": lambda x, classes, mask: losses.contrastive(
        x, torch.eye(3), classes, scale=torch.tensor(5.0), mask=mask, symmetric=True
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("unlabelled", ["by label", "by mask", "no frames"])
def test_nothing_labelled_gives_zero_and_a_zero_gradient(name: str, unlabelled: str) -> None:
    frames = 0 if unlabelled == "no frames" else FRAMES
    x = torch.full((2, frames, CLASSES), math.nan, requires_grad=True)
    classes = torch.full((2, frames), -1 if unlabelled == "by label" else 1)
    mask = torch.full((2, frames), unlabelled != "by mask")
    loss = LOSSES[name](x, classes, mask)
    loss.backward()
    assert loss == 0.0
    assert (x.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_what_stands_at_unlabelled_frames_does_not_matter(name: str, junk: float) -> None:
    x, classes = torch.randn(2, FRAMES, CLASSES), labels()
    mask = torch.rand(2, FRAMES) < 0.8
    known = mask & (classes >= 0)
    clean, dirty = x.clone(), x.masked_fill(~known[..., None], junk)
    results = []
    for tensor in (clean, dirty):
        tensor.requires_grad_()
        loss = LOSSES[name](tensor, classes, mask)
        loss.backward()
        results.append((loss.detach(), tensor.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert (results[1][1][~known] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_summed_in_single(name: str) -> None:
    x, classes = torch.randn(2, FRAMES, CLASSES), labels()
    mask = torch.ones(2, FRAMES, dtype=torch.bool)
    got = LOSSES[name](x.bfloat16(), classes, mask)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, LOSSES[name](x.bfloat16().float(), classes, mask))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, c: losses.cross_entropy(x.long(), c), TypeError, "logits"),
        (lambda x, c: losses.cross_entropy(x, c.float()), TypeError, "classes"),
        (lambda x, c: losses.cross_entropy(x, c[:1]), ValueError, "classes"),
        (lambda x, c: losses.cross_entropy(x, c + 1), ValueError, "classes must lie in -1 .. 2"),
        (lambda x, c: losses.cross_entropy(x, c, mask=c), TypeError, "mask"),
        (lambda x, c: losses.cross_entropy(x, c, mask=c[:1] > 0), ValueError, "mask"),
        (lambda x, c: losses.cross_entropy(x, c, weight=torch.ones(2)), ValueError, "weight"),
        (lambda x, c: losses.cross_entropy(x, c, label_smoothing=1.0), ValueError, "label_smooth"),
        (lambda x, c: losses.focal(x, c, gamma=-1.0), ValueError, "gamma"),
        (lambda x, c: losses.concordance(x, x[:1]), ValueError, "targets"),
        (lambda x, c: losses.concordance(x.long(), x), TypeError, "predictions"),
        (lambda x, c: losses.contrastive(x, torch.eye(4), c, scale=1.0), ValueError, "prompts"),
        (
            lambda x, c: losses.contrastive(x, torch.eye(3)[:2], c, scale=1.0),
            ValueError,
            "classes must lie in -1 .. 1",
        ),
    ],
)
def test_errors_name_the_argument(
    call: Callable[[Tensor, Tensor], Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(torch.randn(2, FRAMES, CLASSES), labels())
