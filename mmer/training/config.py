"""The settings of a training run: dataclasses, read from YAML and overridden on the command line.

``mmer train CONFIG --section.setting VALUE`` builds a :class:`TrainingConfig` with jsonargparse,
which checks every name and type before anything is read or written. :func:`config_from_dict` does
the same for a dictionary, for example the one a checkpoint carries.
"""

from __future__ import annotations

import dataclasses
import os
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


@dataclass
class SplitConfig:
    """Who is trained on and who is kept unseen.

    Attributes:
        key: What is never on both sides: the subject, the group (video, stimulus), or "both"; or
            "given": the split the data set was published with.
        folds: Number of folds of the grouped cross-validation; "both" has folds * folds.
        fold: The fold that is held out for testing, counted from 0.
        balance: Whether folds have equally many recordings or equally many labelled frames.
        validation_fraction: Share of the training subjects (or groups) that is kept aside to choose
            the epoch by; 0 trains for all epochs and keeps the last.
    """

    key: Literal["subject", "group", "both", "given"] = "subject"
    folds: int = 5
    fold: int = 0
    balance: Literal["recordings", "frames"] = "recordings"
    validation_fraction: float = 0.0

    def __post_init__(self) -> None:
        _require(self.folds >= 2, "data.split.folds", "at least 2", self.folds)
        _require(
            0 <= self.fold < self.total, "data.split.fold", f"0 .. {self.total - 1}", self.fold
        )
        _require(
            0 <= self.validation_fraction < 1,
            "data.split.validation_fraction",
            "a share in [0, 1)",
            self.validation_fraction,
        )

    @property
    def total(self) -> int:
        """Number of folds there are."""
        return {"both": self.folds**2, "given": 1}.get(self.key, self.folds)


@dataclass
class DataConfig:
    """Which recordings, and how they are prepared and cut.

    Attributes:
        dataset: A named data set (stress_predict, ceap360vr, mosi_utterances, generated) or the
            path of a file or folder that mmer.data reads.
        folder: Folder of the named data sets; null looks in MMER_DATA, then in ../shared/data.
        options: Further arguments of the reader (or of the generator).
        modalities: The modalities to use; null uses all.
        transforms: Steps applied to every recording, in order, each {transform: NAME, argument:
            value, ...}; with "fit: true" a step is measured on the training recordings first.
        split: Who is trained on and who is kept unseen.
        train_seconds: Shortest and longest training window in seconds; null trains on whole
            recordings.
        windows_per_recording: Training windows drawn from each recording in each epoch.
        evaluation_seconds: Length of the sliding windows of evaluation; null takes whole
            recordings.
        evaluation_hop: Seconds between sliding windows; overlapping predictions are averaged.
        batch_size: Windows in one training batch.
        workers: Processes that cut windows beside the training process; 0 cuts them in it.
    """

    dataset: str = "stress_predict"
    folder: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    modalities: list[str] | None = None
    transforms: list[dict[str, Any]] = field(default_factory=list)
    split: SplitConfig = field(default_factory=SplitConfig)
    train_seconds: tuple[float, float] | None = (60.0, 300.0)
    windows_per_recording: int = 4
    evaluation_seconds: float | None = 300.0
    evaluation_hop: float = 60.0
    batch_size: int = 16
    workers: int = 0

    def __post_init__(self) -> None:
        if self.train_seconds is not None:
            shortest, longest = self.train_seconds
            _require(
                0 < shortest <= longest,
                "data.train_seconds",
                "[shortest, longest] with 0 < shortest <= longest",
                list(self.train_seconds),
            )
        if self.evaluation_seconds is not None:
            _require(
                0 < self.evaluation_hop <= self.evaluation_seconds,
                "data.evaluation_hop",
                f"seconds in (0, evaluation_seconds = {self.evaluation_seconds}]",
                self.evaluation_hop,
            )
        _require(
            self.windows_per_recording >= 1,
            "data.windows_per_recording",
            "at least 1",
            self.windows_per_recording,
        )
        _require(self.batch_size >= 1, "data.batch_size", "at least 1", self.batch_size)
        _require(self.workers >= 0, "data.workers", "0 or more", self.workers)
        _require(
            self.modalities is None or len(self.modalities) > 0,
            "data.modalities",
            "null or at least one name",
            self.modalities,
        )
        for transform in self.transforms:
            _require(
                "transform" in transform,
                "data.transforms",
                "{transform: NAME, ...} in each item",
                transform,
            )


@dataclass
class AugmentationConfig:
    """Changes made to training windows only, in the units of the transformed features.

    Attributes:
        noise: Standard deviation of white noise added to every feature of every step.
        shift: Standard deviation of one constant per window and feature.
        scale: Standard deviation of the logarithm of one factor per window and feature.
        dropout: Probability that a feature of a step is set to 0 (the others are scaled up).
        time_mask: Share of each window, one stretch at a random place per modality, that is set to
            0.
    """

    noise: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    dropout: float = 0.0
    time_mask: float = 0.0

    def __post_init__(self) -> None:
        for name in ("noise", "shift", "scale"):
            _require(
                getattr(self, name) >= 0, f"augmentation.{name}", "0 or more", getattr(self, name)
            )
        for name in ("dropout", "time_mask"):
            _require(
                0 <= getattr(self, name) < 1,
                f"augmentation.{name}",
                "in [0, 1)",
                getattr(self, name),
            )


@dataclass
class LossConfig:
    """What is minimised: the weighted sum of the parts that apply.

    Attributes:
        classes: Loss of the class head.
        class_weights: "balanced" weighs classes by the inverse of their frequency in training, a
            list gives the weights, null weighs none.
        class_weight_power: Exponent of the balanced weights: 1 balances wholly, 0.5 half-way.
        label_smoothing: Probability spread evenly over the classes ("cross_entropy", "threshold").
        focal_gamma: Exponent of the focal loss; 0 is cross-entropy.
        values: Loss of the value head: 1 - CCC, mean squared or mean absolute error, or
            "threshold", the cross-entropy of being above evaluation.threshold.
        classes_weight: Weight of the class loss.
        values_weight: Weight of the value loss.
        contrastive_weight: Weight of the contrastive loss against the class prompt embeddings.
        prompts: A .npy file of class prompt embeddings (classes, text_dim), say CLIP text features,
            for the contrastive loss; null for none.
        modality_weight: Weight of the same losses with one modality at a time, their mean.
    """

    classes: Literal["cross_entropy", "focal"] = "cross_entropy"
    class_weights: Literal["balanced"] | list[float] | None = "balanced"
    class_weight_power: float = 1.0
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    values: Literal["ccc", "mse", "mae", "threshold"] = "ccc"
    classes_weight: float = 1.0
    values_weight: float = 1.0
    contrastive_weight: float = 1.0
    prompts: str | None = None
    modality_weight: float = 0.0


@dataclass
class OptimizerConfig:
    """AdamW and its schedule.

    Attributes:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay of matrices and kernels (not of biases, norms and
            gates).
        betas: Decay of the running means of the gradient and of its square.
        warmup_fraction: Share of all steps in which the learning rate rises linearly to its peak.
        schedule: What follows the warm-up: a half cosine down to 0, or no change.
        gradient_clip: Largest norm of the gradient; 0 does not clip.
        average_decay: Decay of the exponential moving average of the weights that is evaluated and
            kept in place of the last weights; 0 keeps the last.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_fraction: float = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"
    gradient_clip: float = 1.0
    average_decay: float = 0.0

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "optimizer.learning_rate", "above 0", self.learning_rate)
        _require(self.weight_decay >= 0, "optimizer.weight_decay", "0 or more", self.weight_decay)
        _require(
            0 <= self.warmup_fraction < 1,
            "optimizer.warmup_fraction",
            "a share in [0, 1)",
            self.warmup_fraction,
        )
        _require(
            0 <= self.average_decay < 1, "optimizer.average_decay", "in [0, 1)", self.average_decay
        )
        _require(
            self.gradient_clip >= 0, "optimizer.gradient_clip", "0 or more", self.gradient_clip
        )


@dataclass
class TrainerConfig:
    """How long, on what, and what is shown; names as in lightning.pytorch.Trainer.

    Attributes:
        max_epochs: Epochs of training (windows_per_recording windows of every recording each).
        patience: Epochs without a better validation score before training stops; 0 never stops
            early.
        accelerator: "cpu", "gpu" or "auto".
        devices: Number of devices.
        precision: Number format, for example "32-true" or "bf16-mixed".
        threads: Threads of PyTorch on the CPU; results are the same to the last bit only for the
            same number.
        deterministic: Refuse operations that do not give the same bits twice.
        logger: Where the scores of every epoch go: metrics.csv, or TensorBoard event files.
        progress: Show a progress bar.
        options: Any further argument of lightning.pytorch.Trainer.
    """

    max_epochs: int = 20
    patience: int = 0
    accelerator: str = "cpu"
    devices: int = 1
    precision: str = "32-true"
    threads: int = 1
    deterministic: bool = True
    logger: Literal["csv", "tensorboard"] = "csv"
    progress: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.max_epochs >= 1, "trainer.max_epochs", "at least 1", self.max_epochs)
        _require(self.patience >= 0, "trainer.patience", "0 or more", self.patience)
        _require(self.threads >= 1, "trainer.threads", "at least 1", self.threads)


@dataclass
class EvaluationConfig:
    """What is scored, and what the score is read against.

    Attributes:
        segment_seconds: Average predictions and labels over segments of this length before scoring.
        threshold: Values above it are high, the others low: adds accuracy and macro-F1 to each
            value.
        select_by: Scores whose mean chooses the best epoch on the validation people; null takes
            macro_f1 with classes, else the CCC of every value.
        shortcuts: Predictors that look at nobody, scored on the same people: elapsed_time,
            group_identity, majority.
        published: Figures of others for the same protocol: {name: ..., split: subject, scores:
            {macro_f1: ...}}.
    """

    segment_seconds: float | None = None
    threshold: float | None = None
    select_by: list[str] | None = None
    shortcuts: list[Literal["elapsed_time", "group_identity", "majority"]] = field(
        default_factory=lambda: ["majority"]
    )
    published: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class ProtocolConfig:
    """Which runs make up the experiment: every split, fold, seed and set of modalities asked for.

    Attributes:
        splits: Split keys to run, one after the other; null takes data.split.key.
        folds: "all", one fold or a list of folds; null takes data.split.fold.
        seeds: Number of seeds (seed, seed + 1, ...) or a list of them.
        each_modality: Train on each modality alone as well as on all of them.
        workers: Training runs side by side, each in a process of its own with trainer.threads
            threads.
    """

    splits: list[Literal["subject", "group", "both", "given"]] | None = None
    folds: Literal["all"] | int | list[int] | None = None
    seeds: int | list[int] = 1
    each_modality: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        _require(
            self.seeds != [] and (isinstance(self.seeds, list) or self.seeds >= 1),
            "protocol.seeds",
            "at least one",
            self.seeds,
        )
        _require(self.folds != [], "protocol.folds", '"all", null or at least one', self.folds)
        _require(self.workers >= 1, "protocol.workers", "at least 1", self.workers)


@dataclass
class TrainingConfig:
    """Everything that determines a training run.

    Attributes:
        name: Name of the experiment; the run folder is named after it.
        seed: Base of all randomness.
        data: Which recordings, and how they are prepared and cut.
        augmentation: Changes made to training windows only.
        model: Settings of mmer.models.RecognizerConfig, except what the data say: num_classes,
            num_values and the features and rates of modalities; "modalities: {NAME: {patch: 16}}"
            sets the rest.
        loss: What is minimised.
        optimizer: AdamW and its schedule.
        trainer: How long, on what, and what is shown.
        evaluation: What is scored, and what the score is read against.
        protocol: Which runs make up the experiment.
    """

    name: str = "mmer"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    model: dict[str, Any] = field(default_factory=dict)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, as YAML and checkpoints hold them."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def add_settings(parser: ArgumentParser) -> None:
    """Add every setting of :class:`TrainingConfig` to a parser as ``--section.setting``."""
    parser.add_class_arguments(TrainingConfig)


def config_from_namespace(parser: ArgumentParser, namespace: Namespace) -> TrainingConfig:
    """Build the settings from what a parser with :func:`add_settings` returned.

    Args:
        parser: The parser.
        namespace: What it returned; other arguments in it are left alone.

    Returns:
        The settings.

    Raises:
        ValueError: If a value is out of range.
    """
    built = parser.instantiate(namespace)
    return TrainingConfig(
        **{field.name: getattr(built, field.name) for field in dataclasses.fields(TrainingConfig)}
    )


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file of settings; the names and types inside sections are not looked at.

    Args:
        path: The file.

    Returns:
        Sections by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML file, or a section is unknown; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: wanted sections of settings, got {settings!r}")
    _check_sections(settings, str(path))
    return settings


def config_from_dict(settings: Mapping[str, Any], origin: str) -> TrainingConfig:
    """Build the settings from plain values, every name and type checked.

    Args:
        settings: Nested dictionary, as :meth:`TrainingConfig.to_dict` gives it.
        origin: Where it comes from, named in errors.

    Returns:
        The settings.

    Raises:
        ValueError: If a name is unknown or a value has the wrong type or size.
    """
    from jsonargparse import ArgumentParser

    _check_sections(settings, origin)
    parser = ArgumentParser(exit_on_error=False)
    add_settings(parser)
    try:
        return config_from_namespace(parser, parser.parse_object(dict(settings)))
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{origin}: {error}") from error


def _check_sections(settings: Mapping[str, Any], origin: str) -> None:
    sections = [field.name for field in dataclasses.fields(TrainingConfig)]
    for name, value in settings.items():
        if name not in sections:
            raise ValueError(
                f"{origin}: no setting is named {name!r}; there are {', '.join(sections)}"
            )
        if name not in ("name", "seed") and not isinstance(value, Mapping):
            raise ValueError(f"{origin}: {name}: wanted a section of settings, got {value!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _require(condition: bool, name: str, wanted: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"{name}: wanted {wanted}, got {got!r}")
