"""A trained recogniser: read from a checkpoint, and asked about whole recordings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmer.data import (
    Batch,
    Recording,
    SlidingWindows,
    SoftVote,
    UnlabelledFrames,
    apply_transforms,
    collate,
)
from mmer.models import EmotionRecognizer, RecognizerConfig, RecognizerOutput
from mmer.training.checkpoint import BEST, SECTION, CheckpointError, read_checkpoint
from mmer.training.config import TrainingConfig, config_from_dict
from mmer.training.data_module import PARTS, build_transforms, keep_modalities
from mmer.training.prediction import Prediction

MODEL_PREFIX = "model."


def run_model(model: EmotionRecognizer, batch: Batch) -> RecognizerOutput:
    """Run a model at the label times of a batch, or once a window if it has one output for each."""
    frames = model.config.output == "frame"
    return model(
        batch.values,
        masks=batch.masks,
        times=batch.times,
        output_times=batch.label_times if frames else None,
        output_mask=batch.label_mask if frames else None,
    )


class Voting:
    """Collects what a model says of overlapping windows, and averages it for each recording.

    Args:
        model: The model; asked what each modality would say alone.
    """

    def __init__(self, model: EmotionRecognizer) -> None:
        self.model = model
        self._votes = SoftVote()

    def add(self, batch: Batch, output: RecognizerOutput) -> None:
        """Take in the output for one batch of windows.

        Args:
            batch: The windows.
            output: What the model said of them.
        """
        alone: dict[str, Tensor] = {}
        if output.logits is not None:
            for column, name in enumerate(self.model.config.modalities):
                # A missing modality says nothing: its share of voters is kept beside its votes.
                present = (output.weights[..., column] > 0).to(output.logits.dtype)[..., None]
                embeddings = output.modality_embeddings.get(name, output.embeddings)
                alone[f"alone/{name}"] = self.model.classify(embeddings).softmax(dim=-1) * present
                alone[f"present/{name}"] = present
        self._votes.add(
            batch,
            probabilities=None if output.logits is None else output.logits.softmax(dim=-1),
            values=output.values,
            weights=output.weights,
            **alone,
        )

    def predictions(self, recordings: Sequence[Recording]) -> list[Prediction]:
        """Return one prediction for each recording that was heard, in the order of ``recordings``.

        Args:
            recordings: The recordings that the windows were cut from.
        """
        votes = self._votes.votes()
        names = list(self.model.config.modalities)
        predictions = []
        for recording in recordings:
            if recording.identifier not in votes:
                continue
            vote = votes[recording.identifier]
            outputs = vote.outputs
            alone = {}
            for name in names if "probabilities" in outputs else ():
                with np.errstate(invalid="ignore"):
                    alone[name] = outputs[f"alone/{name}"] / outputs[f"present/{name}"]
            predictions.append(
                Prediction(
                    identifier=recording.identifier,
                    subject=recording.subject,
                    group=recording.group,
                    times=np.array([0.5 * recording.duration])
                    if vote.times is None
                    else vote.times,
                    probabilities=_float32(outputs.get("probabilities")),
                    values=_float32(outputs.get("values")),
                    contributions={
                        n: _float32(outputs["weights"][:, i]) for i, n in enumerate(names)
                    },
                    modality_probabilities={name: _float32(array) for name, array in alone.items()},
                    classes=vote.classes,
                    targets=vote.targets,
                    class_names=recording.class_names,
                    value_names=recording.value_names,
                )
            )
        return predictions


@dataclass(frozen=True)
class TrainedRecognizer:
    """A model with everything that its checkpoint carries.

    Attributes:
        model: The recogniser, in evaluation mode.
        config: The settings it was trained with.
        class_names: One name per class.
        value_names: One name per value.
        transforms: Descriptions of the steps from a recording as it was read to what the model
            takes.
        subjects: Who was in "train", "validation" and "test".
        groups: Which videos (stimuli) were in "train", "validation" and "test".
        source: Path of the checkpoint.
    """

    model: EmotionRecognizer
    config: TrainingConfig
    class_names: tuple[str, ...]
    value_names: tuple[str, ...]
    transforms: list[dict[str, Any]]
    subjects: dict[str, list[str]]
    groups: dict[str, list[str]]
    source: str

    def prepare(self, recordings: Sequence[Recording]) -> list[Recording]:
        """Apply the transforms of the training, and drop modalities the model does not know.

        Args:
            recordings: Recordings as they were read.

        Returns:
            The recordings as the model takes them.

        Raises:
            ValueError: If a recording has none of the model's modalities, or one of another width.
        """
        prepared = apply_transforms(recordings, build_transforms(self.transforms))
        for recording in prepared:
            for name, modality in self.model.config.modalities.items():
                stream = recording.streams.get(name)
                if stream is not None and stream.features != modality.features:
                    raise ValueError(
                        f"{recording.identifier}: modality {name} has {stream.features} features, "
                        f"the model of {self.source} takes {modality.features}"
                    )
        return keep_modalities(prepared, list(self.model.config.modalities))

    @torch.no_grad()
    def predict(self, recordings: Sequence[Recording]) -> list[Prediction]:
        """Predict whole recordings: windows slide over them, and those that overlap vote.

        Args:
            recordings: Recordings as :meth:`prepare` returns them.

        Returns:
            One prediction per recording: at the times of its labels where it has labels over time,
                else once a second (once in all for a model with one output per sequence).
        """
        self.model.eval()
        data, device = self.config.data, next(self.model.parameters()).device
        hop = None if data.evaluation_seconds is None else data.evaluation_hop
        voting = Voting(self.model)
        for recording in recordings:
            if self.model.config.output == "frame" and not _has_frames(recording):
                recording = UnlabelledFrames()(recording)
            windows = SlidingWindows([recording], data.evaluation_seconds, hop)
            for first in range(0, len(windows), data.batch_size):
                last = min(first + data.batch_size, len(windows))
                batch = collate([windows[index] for index in range(first, last)]).to(device)
                voting.add(batch, run_model(self.model, batch))
        return voting.predictions(recordings)

    def part(self, recording: Recording) -> str | None:
        """Which part of the training run a recording belongs to.

        Args:
            recording: Any recording.

        Returns:
            "train", "validation" or "test" by its person, or its video where the split was by
            video; None where the run did not know it, or left it out.
        """
        named = {
            part: (
                recording.subject in self.subjects[part],
                bool(recording.group) and recording.group in self.groups[part],
            )
            for part in PARTS
        }
        for part in PARTS:
            subject, group = named[part]
            if {"group": group, "both": subject and group}.get(self.config.data.split.key, subject):
                return part
        return None

    def unseen(self, recording: Recording) -> bool | None:
        """Whether a recording's person (video, with a split by video) was kept out of training.

        Args:
            recording: Any recording.

        Returns:
            True or False for those of the data set the model was trained on, None for all others.
        """
        part = self.part(recording)
        return None if part is None else part == "test"


def load_recognizer(path: str | os.PathLike[str], device: str = "cpu") -> TrainedRecognizer:
    """Read a trained recogniser; only the checkpoint is needed, and nothing in it is executed.

    Args:
        path: A checkpoint, or a run folder, whose best epoch is taken.
        device: Where the model goes.

    Returns:
        The recogniser, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is truncated, corrupt, or no checkpoint of this project.
    """
    path = Path(path)
    if path.is_dir():
        runs = sorted(run.parent.name for run in path.glob(f"*/{BEST}"))
        if runs and not (path / BEST).is_file():
            raise FileNotFoundError(f"{path}: holds {len(runs)} runs, choose one: {path / runs[0]}")
        path = path / BEST
    checkpoint = read_checkpoint(path)
    section: dict[str, Any] = checkpoint[SECTION]
    weights = {
        name.removeprefix(MODEL_PREFIX): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(MODEL_PREFIX)
    }
    try:
        config = config_from_dict(section["config"], str(path))
        model = EmotionRecognizer(RecognizerConfig.from_dict(section["recognizer"]))
        model.load_state_dict(weights)
        return TrainedRecognizer(
            model=model.to(device).eval(),
            config=config,
            class_names=tuple(section["class_names"]),
            value_names=tuple(section["value_names"]),
            transforms=list(section["transforms"]),
            subjects=dict(section["subjects"]),
            groups=dict(section["groups"]),
            source=str(path),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its parts do not fit each other ({error})") from error


def _has_frames(recording: Recording) -> bool:
    return recording.labels is not None and recording.labels.times is not None


def _float32(array: Any) -> Any:
    return None if array is None else array.astype(np.float32)
