"""The comparison of a model before and after: what it measures, and that it can see differences."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from mmer.replacement import FusedModule, compare_attention, register_replacement, rules


class Slow(nn.Module):
    """Takes 20 ms and 64 MiB."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.02)
        torch.ones(2**24)
        return 2 * x


class FusedSlow(FusedModule, Slow):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 0.5


def test_difference_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_RULES", {})
    register_replacement(FusedSlow)
    model, x = Slow(), torch.tensor([1.0, -4.0])
    compared = compare_attention(model, lambda model: [model(x)], repeats=2)
    assert type(model) is Slow
    assert compared.difference == pytest.approx(0.5 / 8)
    assert compared.before.seconds >= 0.02
    assert compared.after.seconds > 0
    if compared.before.peak_bytes is not None:
        assert 60 * 2**20 < compared.before.peak_bytes < 80 * 2**20
        assert compared.after.peak_bytes < 2**20
    assert str(compared).startswith("largest difference 6.2e-02, time ")


def test_nothing_to_compare() -> None:
    with (
        pytest.raises(ValueError, match="can be replaced"),
        pytest.warns(UserWarning, match="nothing was replaced"),
    ):
        compare_attention(nn.Linear(2, 2), lambda model: [model(torch.ones(1, 2))])
    with pytest.raises(ValueError, match="repeats"):
        compare_attention(nn.Linear(2, 2), lambda model: [], repeats=0)
