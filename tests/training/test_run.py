"""Training runs end to end: finished, killed, resumed, refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mmer.data import Labels, generate_recordings, write_recordings
from mmer.training.checkpoint import BEST, LAST, CheckpointError, read_checkpoint
from mmer.training.prediction import read_predictions
from mmer.training.protocol import RESULTS_CSV, RESULTS_JSON, plan_jobs, run_experiment
from mmer.training.recognizer import load_recognizer
from mmer.training.run import PREDICTIONS, RESULT, train
from tests.training.cases import tiny_config

KILLED = {
    "trainer__max_epochs": 3,
    "trainer__patience": 0,
    "data__windows_per_recording": 30,
    "data__modalities": ["EDA", "BVP"],
}


def equal(a: Any, b: Any) -> bool:
    """Whether two nested states are the same to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def test_finished_run_holds_everything(trained: Path) -> None:
    result = json.loads((trained / RESULT).read_text())
    assert result["epochs"] <= 3
    assert 0 <= result["scores"]["macro_f1"] <= 1
    people = [set(result["subjects"][part]) for part in ("train", "validation", "test")]
    assert sum(map(len, people)) == len(set.union(*people)) == 6
    assert all(people)
    predictions = read_predictions(trained / PREDICTIONS)
    assert {p.subject for p in predictions} == people[2]
    for prediction in predictions:
        assert len(prediction.times) == 150
        np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1.0, atol=1e-5)
        np.testing.assert_allclose(sum(prediction.contributions.values()), 1.0, atol=1e-5)
    rows = json.loads((trained / RESULTS_JSON).read_text())["rows"]
    assert [row["kind"] for row in rows] == ["model", "shortcut", "shortcut"]
    assert "elapsed time alone" in (trained / RESULTS_CSV).read_text()
    assert list(trained.glob("logs/version_0/metrics.csv"))
    assert not list(trained.glob(".*"))


def test_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = tiny_config(**KILLED)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = tmp_path / "config.yaml"
    settings.write_text(yaml.safe_dump(config.to_dict()))
    process = subprocess.Popen(
        [sys.executable, "-m", "mmer", "train", str(settings), "--output", str(killed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    train(config, whole)
    begun = time.monotonic()
    while not (killed / LAST).exists():
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() - begun < 200
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert read_checkpoint(killed / LAST)["epoch"] < 2
    assert not (killed / RESULT).exists()
    train(config, killed, resume=True)
    for name in (LAST, BEST):
        resumed, expected = read_checkpoint(killed / name), read_checkpoint(whole / name)
        for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
            assert equal(resumed[part], expected[part]), part
        assert resumed["callbacks"] == expected["callbacks"]
    for ours, theirs in zip(
        read_predictions(killed / PREDICTIONS), read_predictions(whole / PREDICTIONS), strict=True
    ):
        np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)


def test_seed_changes_the_weights_and_nothing_else_does(trained: Path, tmp_path: Path) -> None:
    train(tiny_config(trainer__patience=1, trainer__max_epochs=1), tmp_path / "a")
    train(tiny_config(trainer__patience=1, trainer__max_epochs=1), tmp_path / "b")
    train(tiny_config(trainer__patience=1, trainer__max_epochs=1, seed=4), tmp_path / "c")
    states = [read_checkpoint(tmp_path / name / LAST)["state_dict"] for name in "abc"]
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


def test_early_stopping_is_not_undone_by_resuming(tmp_path: Path) -> None:
    config = tiny_config(trainer__max_epochs=30, trainer__patience=1, optimizer__learning_rate=1e-9)
    result = train(config, tmp_path)
    assert result["epochs"] < 30
    before = read_checkpoint(tmp_path / LAST)
    (tmp_path / RESULT).unlink()
    assert train(config, tmp_path, resume=True)["epochs"] == result["epochs"]
    assert equal(read_checkpoint(tmp_path / LAST)["state_dict"], before["state_dict"])


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_truncated_checkpoint_is_named(trained: Path, tmp_path: Path, size: int) -> None:
    content = (trained / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(content[:size])
    with pytest.raises(CheckpointError, match=f"{tmp_path / LAST}.*truncated, corrupt"):
        train(tiny_config(), tmp_path, resume=True)


def test_run_folder_is_not_overwritten(trained: Path) -> None:
    before = (trained / LAST).read_bytes()
    with pytest.raises(FileExistsError, match=r"--resume .* goes on with it, --output"):
        run_experiment(tiny_config(), trained)
    assert (trained / LAST).read_bytes() == before


def test_resume_with_other_settings_is_refused(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 0.01 -> 0.5"):
        run_experiment(tiny_config(optimizer__learning_rate=0.5), trained, resume=True)


def test_resume_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        run_experiment(tiny_config(), tmp_path / "nowhere", resume=True)


def test_finished_experiment_is_only_read(trained: Path) -> None:
    before = (trained / LAST).stat().st_mtime_ns
    rows = run_experiment(tiny_config(), trained, resume=True)
    assert (trained / LAST).stat().st_mtime_ns == before
    assert rows[0].name == "EDA + TEMP + BVP + ACC fused"


def test_protocol_runs_in_workers_and_pools_folds(tmp_path: Path) -> None:
    config = tiny_config(
        trainer__max_epochs=1,
        protocol={"folds": "all", "seeds": 2, "workers": 2},
        data__modalities=["EDA", "ACC"],
        data__split__validation_fraction=0.0,
    )
    told: list[str] = []
    rows = run_experiment(
        config,
        tmp_path / "run",
        report=lambda job, epoch, epochs, score: told.append(f"{job.name} {epoch}/{epochs}"),
    )
    assert len(told) == len(set(told)) == 6
    model = rows[0]
    assert (model.kind, model.seeds, model.name) == ("model", 2, "EDA + ACC fused")
    assert model.spreads["macro_f1"] >= 0
    people = [
        prediction.subject
        for job in plan_jobs(config)
        if job.seed == 3
        for prediction in read_predictions(tmp_path / "run" / job.name / PREDICTIONS)
    ]
    assert sorted(people) == [f"G0{number}" for number in range(1, 7)]


def test_values_and_text_prompts_are_trained(tmp_path: Path) -> None:
    np.save(tmp_path / "prompts.npy", np.eye(2, 5, dtype=np.float32))
    config = tiny_config(
        loss__prompts=str(tmp_path / "prompts.npy"),
        trainer__max_epochs=1,
        trainer__logger="tensorboard",
    )
    train(config, tmp_path / "run")
    state = read_checkpoint(tmp_path / "run" / LAST)["state_dict"]
    assert state["model.to_text.weight"].shape == (5, 8)
    assert list((tmp_path / "run").glob("logs/version_0/events.*"))


def test_one_label_for_a_recording_and_values(tmp_path: Path) -> None:
    people = []
    for number, person in enumerate(generate_recordings(6, 60.0)):
        labels = Labels(np.array([number % 2]), np.array([[float(number), np.nan]]))
        people.append(dataclasses.replace(person, labels=labels, value_names=("v", "unknown")))
    write_recordings(tmp_path / "people.npz", people)
    config = tiny_config(
        data__dataset=str(tmp_path / "people.npz"),
        data__options={},
        data__split__validation_fraction=0.0,
        data__train_seconds=None,
        model__output="sequence",
        trainer__max_epochs=1,
        evaluation__shortcuts=["majority"],
    )
    rows = run_experiment(config, tmp_path / "run")
    assert {"accuracy", "v/ccc", "v/mae"} <= set(rows[0].scores)
    for prediction in read_predictions(tmp_path / "run" / PREDICTIONS):
        assert prediction.probabilities is not None
        assert prediction.probabilities.shape == (1, 2)
        assert prediction.values is not None
        assert prediction.values.shape == (1, 2)
    again = load_recognizer(tmp_path / "run").predict(
        load_recognizer(tmp_path / "run").prepare([dataclasses.replace(people[0], labels=None)])
    )
    assert again[0].times.tolist() == [30.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__embed_dim": 7}, "model: embed_dim must be a multiple of num_heads"),
        ({"model__depth": 7}, "model: depth is no field"),
        ({"model__num_classes": 2}, "model.num_classes: the recordings say it"),
        ({"model__modalities": {"EEG": {"patch": 2}}}, "model.modalities: .* got 'EEG'"),
        ({"data__modalities": ["EEG"]}, "data.modalities: .* got 'EEG'"),
        ({"loss__class_weights": [1.0]}, "loss.class_weights: wanted 2 weights, got 1"),
        ({"loss__prompts": "missing.npy"}, "loss.prompts: missing.npy cannot be read"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(tiny_config(**changes), tmp_path)
