"""A small experiment on generated recordings that every test here can afford."""

from __future__ import annotations

from typing import Any

from mmer.training.config import TrainingConfig, config_from_dict

SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "data": {
        "dataset": "generated",
        "options": {"subjects": 6, "seconds": 150.0},
        "transforms": [
            {
                "transform": "FrameStatistics",
                "seconds": 5.0,
                "statistics": {
                    "EDA": ["mean", "slope@15"],
                    "TEMP": ["mean"],
                    "BVP": ["log_deviation"],
                    "ACC": ["log_deviation"],
                },
            },
            {"transform": "StandardizePerRecording"},
        ],
        "split": {"folds": 3, "validation_fraction": 0.3},
        "train_seconds": [60, 120],
        "windows_per_recording": 4,
        "evaluation_seconds": 100,
        "evaluation_hop": 40,
        "batch_size": 4,
    },
    "augmentation": {"noise": 0.1, "dropout": 0.1, "time_mask": 0.1},
    "model": {
        "embed_dim": 8,
        "num_heads": 2,
        "encoder_layers": 1,
        "dropout": 0.2,
        "modality_dropout": 0.2,
    },
    "loss": {"modality_weight": 0.3},
    "optimizer": {"learning_rate": 0.01, "average_decay": 0.9},
    "trainer": {"max_epochs": 3, "patience": 2, "progress": False},
    "evaluation": {"shortcuts": ["elapsed_time", "majority"]},
}


def tiny_config(**changes: Any) -> TrainingConfig:
    """The settings with some changed, by dotted name with ``__`` for the dot."""
    settings = merge({}, SETTINGS)
    for name, value in changes.items():
        *sections, last = name.split("__")
        place = settings
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return config_from_dict(settings, "tiny")


def merge(target: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    for name, value in source.items():
        target[name] = merge({}, value) if isinstance(value, dict) else value
    return target
