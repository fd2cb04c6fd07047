"""Recordings for training: nobody on two sides, windows of (seed, epoch), steps fitted."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mmer.data import Labels, Recording, Stream, write_recordings
from mmer.training.config import DataConfig, SplitConfig
from mmer.training.data_module import (
    RecordingsDataModule,
    build_transforms,
    fit_transforms,
    hold_out,
    keep_modalities,
    prepare_recordings,
    split_recordings,
)
from tests.training.cases import tiny_config


def recording(
    subject: str, group: str = "", part: str = "", level: float = 0.0, streams: str = "ab"
) -> Recording:
    identifier = f"{part}{subject}{group}"
    return Recording(
        identifier=identifier,
        subject=subject,
        group=group,
        streams={name: Stream.regular(np.arange(20.0) + level, 1.0) for name in streams},
        labels=Labels(classes=np.arange(20) // 10, times=np.arange(20) + 0.5),
        class_names=("x", "y"),
    )


def module(**changes: Any) -> RecordingsDataModule:
    config = tiny_config(**changes)
    built = RecordingsDataModule(config.data, config.seed)
    built.setup("fit")
    return built


def test_nobody_is_in_two_parts() -> None:
    seen = []
    for fold in range(3):
        data = module(data__split__fold=fold)
        parts = [set(data.subjects(part)) for part in ("train", "validation", "test")]
        assert all(parts)
        assert sum(map(len, parts)) == len(set.union(*parts)) == 6
        seen += data.subjects("test")
    assert sorted(seen) == [f"G0{number}" for number in range(1, 7)]


def test_validation_people_depend_on_the_seed_alone() -> None:
    chosen = {tuple(module(seed=seed).subjects("validation")) for seed in range(6)}
    assert len(chosen) > 1
    assert module(seed=2).subjects("validation") == module(seed=2).subjects("validation")


def test_windows_depend_on_seed_and_epoch_alone() -> None:
    class AtEpoch:
        def __init__(self, epoch: int) -> None:
            self.current_epoch = epoch

    def windows(epoch: int, seed: int = 3) -> list[tuple[str, float]]:
        data = module(seed=seed, data__split__validation_fraction=0.0)
        data.trainer = AtEpoch(epoch)  # type: ignore[assignment]
        loader = data.train_dataloader()
        # What a first, unused iterator draws must not change what the second gives.
        next(iter(loader))
        return [pair for b in loader for pair in zip(b.identifiers, b.starts.tolist(), strict=True)]

    assert windows(4) == windows(4)
    assert windows(4) != windows(5)
    assert windows(4) != windows(4, seed=8)
    assert len(windows(0)) == 4 * 4


def test_modalities_are_a_subset_in_the_order_asked_for() -> None:
    data = module(data__modalities=["BVP", "EDA"])
    assert list(data.modalities) == ["BVP", "EDA"]
    assert data.modalities["EDA"] == {"features": 2, "rate": pytest.approx(0.2)}
    assert set(data.recordings("test")[0].streams) == {"BVP", "EDA"}
    assert data.all_modalities == ["EDA", "TEMP", "BVP", "ACC"]
    with pytest.raises(ValueError, match=r"data.modalities: the recordings have EDA.*got 'EEG'"):
        module(data__modalities=["EEG"])


def test_recording_without_any_modality_is_named() -> None:
    both = [recording("A"), recording("B", streams="b")]
    assert [list(r.streams) for r in keep_modalities(both, ["b"])] == [["b"], ["b"]]
    with pytest.raises(ValueError, match="B: wanted a modality of a, it has b"):
        keep_modalities(both, ["a"])


def test_width_that_differs_is_named(tmp_path: Any) -> None:
    wide = dataclasses.replace(recording("B"), streams={"a": Stream.regular(np.ones((20, 2)), 1.0)})
    people = [recording(name) for name in "ACDE"]
    write_recordings(tmp_path / "r.npz", [*people, wide])
    data = RecordingsDataModule(DataConfig(dataset=str(tmp_path / "r.npz"), split=SplitConfig()))
    data.setup()
    with pytest.raises(ValueError, match="modality a has"):
        _ = data.modalities


def test_fitted_step_looks_at_training_recordings_alone() -> None:
    parts = {
        "train": [recording("A", level=0.0), recording("B", level=4.0)],
        "validation": [],
        "test": [recording("C", level=1000.0)],
    }
    described, changed = fit_transforms([{"transform": "Standardize", "fit": True}], parts)
    assert described[0]["mean"]["a"] == [pytest.approx(11.5)]
    train = np.concatenate([r.streams["a"].values for r in changed["train"]])
    np.testing.assert_allclose([train.mean(), train.std()], [0.0, 1.0], atol=1e-5)
    assert changed["test"][0].streams["a"].values.mean() > 100
    (again,) = build_transforms(described)
    np.testing.assert_array_equal(
        again(parts["test"][0]).streams["a"].values, changed["test"][0].streams["a"].values
    )


def test_fitted_step_passes_over_modalities_that_are_left_out() -> None:
    parts = {"train": [recording("P1", streams="a")], "test": [recording("P2", streams="a")]}
    step = {"transform": "Standardize", "streams": ["a", "b"], "fit": True}
    (measured,), _ = fit_transforms([step], parts)
    assert list(measured["mean"]) == ["a"]


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"transform": "Nothing"}, "transform must be one of"),
        ({"transform": "ClipValues", "width": 3}, "ClipValues has no argument width; it has"),
        ({"transform": "ClipValues", "limit": -1}, "ClipValues.limit must be above 0"),
        ({"transform": "ClipValues", "fit": True}, "ClipValues has nothing to fit"),
    ],
)
def test_wrong_steps_are_named(description: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"data.transforms: {message}"):
        fit_transforms([description], {"train": [recording("A")]})


def test_published_split_and_its_validation_part() -> None:
    given = SplitConfig(key="given")
    people = [
        recording(name, part=f"{part}/") for part in ("train", "valid", "test") for name in part
    ]
    parts = split_recordings(people, given)
    assert [len(parts[part]) for part in ("train", "validation", "test")] == [5, 5, 4]
    with pytest.raises(ValueError, match="the published split has no part 'test'"):
        split_recordings(people[:5], given)
    with pytest.raises(ValueError, match="does not say which part"):
        split_recordings([recording("A")], given)


def test_split_by_video_holds_out_videos() -> None:
    people = [recording(name, group) for name in "ABCD" for group in "uvwxyz"]
    split = SplitConfig(key="group", folds=3, fold=1, validation_fraction=0.25)
    parts = split_recordings(people, split, seed=1)
    groups = [{r.group for r in parts[part]} for part in ("train", "validation", "test")]
    assert [len(names) for names in groups] == [3, 1, 2]
    assert len(set.union(*groups)) == 6


def test_holding_out_everybody_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves nobody to train on"):
        hold_out([recording("A")], SplitConfig(validation_fraction=0.5), 0)


def test_preparation_is_done_once() -> None:
    data = tiny_config().data
    assert prepare_recordings(data)[0] is prepare_recordings(data)[0]
