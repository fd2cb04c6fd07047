from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mmer.data import Labels, Recording, Stream, collate, cut_window
from tests.data.cases import make_recording


def test_padding_is_on_the_right_zero_and_masked() -> None:
    windows = [cut_window(make_recording(), 0, 5), cut_window(make_recording(seed=1), 3, 9)]
    batch = collate(windows)
    assert len(batch) == 2
    assert batch.values["fast"].shape == (2, 72, 2)
    assert batch.masks["fast"].sum(1).tolist() == [40, 72]
    assert batch.values["fast"][0, 40:].abs().sum() == 0
    np.testing.assert_array_equal(batch.values["fast"][0, :40], windows[0].values["fast"])
    assert batch.label_times.shape == (2, 9)
    assert batch.label_mask.sum(1).tolist() == [5, 9]
    assert (batch.classes[0, 5:] == -1).all()
    assert torch.isnan(batch.targets[0, 5:]).all()
    np.testing.assert_array_equal(batch.targets[1], windows[1].targets)
    types = {name: t.dtype for name, t in (("v", batch.values["fast"]), ("t", batch.times["slow"]))}
    assert types == {"v": torch.float32, "t": torch.float32}
    assert batch.starts.dtype == torch.float64
    assert batch.classes.dtype == torch.int64


def test_a_mask_within_a_stream_is_kept() -> None:
    mask = np.array([True, False, True, True])
    recording = Recording("r", "r", streams={"x": Stream.regular(np.ones(4), 1.0, mask=mask)})
    batch = collate([cut_window(recording)])
    assert batch.masks["x"][0].tolist() == mask.tolist()
    assert batch.values["x"][0, :, 0].tolist() == [1, 0, 1, 1]


def test_a_modality_that_an_item_lacks_is_masked() -> None:
    full = make_recording()
    lacking = dataclasses.replace(full, streams={"fast": full.streams["fast"]})
    batch = collate([cut_window(lacking), cut_window(full)])
    assert list(batch.values) == ["fast", "slow", "event"]
    assert batch.masks["slow"].any(dim=1).tolist() == [False, True]


def test_items_without_labels_beside_items_with_them() -> None:
    batch = collate([cut_window(make_recording()), cut_window(make_recording(labels=False))])
    assert batch.label_mask.sum(1).tolist() == [20, 0]
    assert (batch.classes[1] == -1).all()
    alone = collate([cut_window(make_recording(labels=False))])
    assert alone.label_times is None
    assert alone.classes is None
    assert alone.targets is None
    assert alone.label_mask.tolist() == [[False]]


def test_an_unlabelled_frame_is_a_frame() -> None:
    labels = Labels(classes=np.array([-1, 1]), times=np.array([0.5, 1.5]))
    recording = Recording("r", "r", streams={"x": Stream.regular(np.ones(2), 1.0)}, labels=labels)
    batch = collate([cut_window(recording)])
    assert batch.label_mask.tolist() == [[True, True]]
    assert batch.classes.tolist() == [[-1, 1]]


def test_widths_must_agree() -> None:
    other = Recording("o", "o", streams={"fast": Stream.regular(np.ones((4, 3)), 1.0)})
    with pytest.raises(ValueError, match="features of fast"):
        collate([cut_window(make_recording()), cut_window(other)])
    labels = Labels(values=np.zeros((2, 1)), times=np.arange(2))
    other = Recording("o", "o", streams={"x": Stream.regular(np.ones(4), 1.0)}, labels=labels)
    with pytest.raises(ValueError, match="values per label"):
        collate([cut_window(make_recording()), cut_window(other)])
    with pytest.raises(ValueError, match="at least one"):
        collate([])


def test_moving_a_batch_moves_all_but_the_bookkeeping() -> None:
    batch = collate([cut_window(make_recording())])
    moved = batch.to("meta")
    assert moved.values["fast"].device.type == "meta"
    assert moved.masks["fast"].device.type == "meta"
    assert moved.classes.device.type == "meta"
    assert moved.starts.device.type == "cpu"
    assert moved.identifiers == ["r"]
    assert batch.values["fast"].device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU only")
def test_a_batch_can_be_pinned() -> None:
    pinned = collate([cut_window(make_recording())]).pin_memory()
    assert pinned.values["fast"].is_pinned()
    assert pinned.label_mask.is_pinned()
