"""Recordings for training: read, transformed, split by person, cut into windows."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from mmer.data import (
    TRANSFORMS,
    RandomWindows,
    Recording,
    SlidingWindows,
    Transform,
    Window,
    apply_transforms,
    build_transform,
    collate,
    load_dataset,
    official_split,
    split_by,
)
from mmer.training.config import DataConfig, SplitConfig

PARTS = ("train", "validation", "test")


class RecordingsDataModule(LightningDataModule):
    """The recordings of one training run in three parts, none sharing a person with another.

    The windows of an epoch depend on (seed, epoch) alone, so training that goes on after an
    interruption sees what it would have seen.

    Args:
        data: Which recordings, and how they are prepared and cut.
        seed: Seed of the windows and of the choice of validation people.
    """

    def __init__(self, data: DataConfig, seed: int = 0) -> None:
        super().__init__()
        self.data = data
        self.seed = seed
        self.transforms: list[dict[str, Any]] = []
        self._parts: dict[str, list[Recording]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read and split the recordings; the second time nothing is done."""
        if self._parts:
            return
        before, after = divide_transforms(self.data.transforms)
        parts = split_recordings(prepare_recordings(self.data), self.data.split, self.seed)
        measured, self._parts = fit_transforms(after, parts)
        self.transforms = [*before, *measured]

    def recordings(self, part: str) -> list[Recording]:
        """The recordings of "train", "validation" or "test"."""
        return self._parts[part]

    def subjects(self, part: str) -> list[str]:
        """The people of a part, sorted."""
        return sorted({recording.subject for recording in self._parts[part]})

    def groups(self, part: str) -> list[str]:
        """The videos (stimuli) of a part, sorted."""
        return sorted({recording.group for recording in self._parts[part] if recording.group})

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class."""
        return self._parts["train"][0].class_names

    @property
    def value_names(self) -> tuple[str, ...]:
        """One name per value."""
        return self._parts["train"][0].value_names

    @property
    def all_modalities(self) -> list[str]:
        """Names of the modalities that the recordings have, those that this run leaves out too."""
        return modality_names(prepare_recordings(dataclasses.replace(self.data, modalities=None)))

    @functools.cached_property
    def modalities(self) -> dict[str, dict[str, Any]]:
        """Features and rate of each modality; no rate where it is irregular or not the same in all.

        Raises:
            ValueError: If a modality differs in width between recordings.
        """
        found: dict[str, dict[str, Any]] = {}
        for recording in (recording for part in PARTS for recording in self._parts[part]):
            for name, stream in recording.streams.items():
                facts = found.setdefault(name, {"features": stream.features, "rate": stream.rate})
                if facts["features"] != stream.features:
                    raise ValueError(
                        f"{recording.identifier}: modality {name} has {stream.features} features, "
                        f"other recordings have {facts['features']}"
                    )
                if facts["rate"] != stream.rate:
                    facts["rate"] = None
        return {name: found[name] for name in self.data.modalities or found}

    def class_counts(self) -> Tensor:
        """How often each class is labelled in training, int64 ``(classes,)``."""
        counts = np.zeros(len(self.class_names), dtype=np.int64)
        for recording in self._parts["train"]:
            if recording.labels is not None and recording.labels.classes is not None:
                classes = recording.labels.classes
                counts += np.bincount(classes[classes >= 0], minlength=len(counts))
        return torch.from_numpy(counts)

    def train_dataloader(self) -> DataLoader[Window]:
        """Windows at random places, new ones and in a new order in every epoch."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        windows = RandomWindows(
            self._parts["train"],
            self.data.train_seconds,
            self.data.windows_per_recording,
            seed=self.seed,
        )
        windows.set_epoch(epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        # A list: a trainer may begin an epoch's loader twice, and the order must not move on.
        order = torch.randperm(len(windows), generator=generator).tolist()
        return DataLoader(
            windows,
            batch_size=self.data.batch_size,
            sampler=order,
            generator=generator,
            num_workers=self.data.workers,
            collate_fn=collate,
        )

    def val_dataloader(self) -> DataLoader[Window] | list[Any]:
        """Windows that slide over the validation recordings; none without such."""
        if not self._parts["validation"]:
            return []
        seconds = self.data.evaluation_seconds
        hop = None if seconds is None else self.data.evaluation_hop
        windows = SlidingWindows(self._parts["validation"], seconds, hop)
        return DataLoader(windows, batch_size=self.data.batch_size, collate_fn=collate)


def prepare_recordings(data: DataConfig) -> list[Recording]:
    """Read the recordings of a configuration and take the steps that need no training recordings.

    It is done once for the same settings.

    Args:
        data: Which recordings, and how they are prepared.

    Returns:
        The recordings with the modalities asked for.

    Raises:
        FileNotFoundError: If the data set is not there; the message says where it comes from.
        ValueError: If a file is broken or a setting does not fit the recordings.
    """
    recordings = _prepared(
        data.dataset,
        data.folder,
        _state(data.dataset),
        json.dumps(data.options, sort_keys=True),
        json.dumps(divide_transforms(data.transforms)[0], sort_keys=True),
    )
    if data.modalities is None:
        return recordings
    known = modality_names(recordings)
    for name in data.modalities:
        if name not in known:
            raise ValueError(
                f"data.modalities: the recordings have {', '.join(known)}, got {name!r}"
            )
    return keep_modalities(recordings, data.modalities)


@functools.lru_cache(maxsize=2)
def _prepared(
    dataset: str, folder: str | None, state: tuple[str, int] | None, options: str, transforms: str
) -> list[Recording]:
    recordings = load_dataset(dataset, folder=folder, **json.loads(options))
    return apply_transforms(recordings, build_transforms(json.loads(transforms)))


def _state(dataset: str) -> tuple[str, int] | None:
    """Which file a path means now, and when it was changed last."""
    path = Path(dataset)
    return (str(path.resolve()), path.stat().st_mtime_ns) if path.exists() else None


def keep_modalities(recordings: Sequence[Recording], names: Sequence[str]) -> list[Recording]:
    """Drop all other modalities.

    Args:
        recordings: Any recordings.
        names: The modalities to keep, in this order. One that a recording lacks is missing in it.

    Returns:
        The recordings with what is left.

    Raises:
        ValueError: If a recording has none of them.
    """
    kept = []
    for recording in recordings:
        streams = {name: recording.streams[name] for name in names if name in recording.streams}
        if not streams:
            raise ValueError(
                f"{recording.identifier}: wanted a modality of {', '.join(names)}, "
                f"it has {', '.join(recording.streams)}"
            )
        kept.append(dataclasses.replace(recording, streams=streams))
    return kept


def modality_names(recordings: Sequence[Recording]) -> list[str]:
    """Names of the modalities that any of the recordings has, in order of first appearance."""
    return list(dict.fromkeys(name for recording in recordings for name in recording.streams))


def divide_transforms(
    descriptions: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Divide steps into those before the split, and those from the first on that is fitted."""
    first = next((i for i, d in enumerate(descriptions) if d.get("fit")), len(descriptions))
    return list(descriptions[:first]), list(descriptions[first:])


def build_transforms(descriptions: Sequence[dict[str, Any]]) -> list[Transform]:
    """Build the steps that descriptions name; only those of mmer.data can be named.

    Args:
        descriptions: One {transform: NAME, argument: value, ...} for each.

    Returns:
        The steps.

    Raises:
        ValueError: If a name or an argument is unknown or out of range.
    """
    try:
        return [build_transform(description) for description in descriptions]
    except ValueError as error:
        raise ValueError(f"data.transforms: {error}") from error


def fit_transforms(
    descriptions: Sequence[dict[str, Any]], parts: dict[str, list[Recording]]
) -> tuple[list[dict[str, Any]], dict[str, list[Recording]]]:
    """Apply steps after the split; those with ``fit: true`` are measured on "train" first.

    Args:
        descriptions: The steps.
        parts: Recordings by part; "train" is what is measured.

    Returns:
        The steps with what was measured in place of ``fit``, and the changed recordings.

    Raises:
        ValueError: If a step cannot be built, or cannot be fitted.
    """
    measured = []
    for description in descriptions:
        arguments = {name: value for name, value in description.items() if name != "fit"}
        if description.get("fit"):
            name = arguments.pop("transform")
            fit = getattr(TRANSFORMS.get(name), "fit", None)
            if fit is None:
                fitted = ", ".join(n for n, kind in TRANSFORMS.items() if hasattr(kind, "fit"))
                raise ValueError(f"data.transforms: {name} has nothing to fit, only {fitted} has")
            if "streams" in arguments:
                # A run with some of the modalities only has nothing to measure in the others.
                there = modality_names(parts["train"])
                arguments["streams"] = [n for n in arguments["streams"] if n in there]
            step = fit(parts["train"], **arguments)
            arguments = {"transform": name, **dataclasses.asdict(step)}
        (step,) = build_transforms([arguments])
        parts = {part: step.apply(recordings) for part, recordings in parts.items()}
        measured.append(arguments)
    return measured, parts


def split_recordings(
    recordings: Sequence[Recording], split: SplitConfig, seed: int = 0
) -> dict[str, list[Recording]]:
    """Split recordings into those to train on, to choose the epoch by, and to test on.

    Args:
        recordings: All recordings.
        split: By what, into how many folds, which one is kept unseen, and the share for validation.
        seed: Seed of the choice of validation people (videos).

    Returns:
        "train", "validation" (empty if the share is 0 and none was published) and "test".

    Raises:
        ValueError: If there are fewer people (videos) than folds, or no published split.
    """
    if split.key != "given":
        training, testing = split_by(
            recordings, split.key, split.folds, split.fold, balance=split.balance
        )
    else:
        parts = official_split(recordings)
        for part in ("train", "test"):
            if part not in parts:
                raise ValueError(f"data.split.key: the published split has no part {part!r}")
        training, testing = parts["train"], parts["test"]
        if "valid" in parts:
            return {"train": training, "validation": parts["valid"], "test": testing}
    training, validation = hold_out(training, split, seed)
    return {"train": training, "validation": validation, "test": testing}


def hold_out(
    recordings: Sequence[Recording], split: SplitConfig, seed: int
) -> tuple[list[Recording], list[Recording]]:
    """Keep a share of the training people (videos) aside to choose the epoch by.

    Args:
        recordings: Training recordings.
        split: By what, and which share.
        seed: Seed of the choice.

    Returns:
        Recordings to train on, and recordings for validation, none if the share is 0.

    Raises:
        ValueError: If nobody would be left to train on.
    """
    if split.validation_fraction == 0:
        return list(recordings), []
    attribute = "group" if split.key == "group" else "subject"
    names = sorted({getattr(recording, attribute) for recording in recordings})
    count = max(1, round(split.validation_fraction * len(names)))
    if count >= len(names):
        raise ValueError(
            f"data.split.validation_fraction: {split.validation_fraction} of {len(names)} "
            f"{attribute}s leaves nobody to train on"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    chosen = {names[index] for index in order[:count]}
    return (
        [recording for recording in recordings if getattr(recording, attribute) not in chosen],
        [recording for recording in recordings if getattr(recording, attribute) in chosen],
    )
