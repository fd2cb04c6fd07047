"""Settings: read from YAML, overridden on the command line, every mistake named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mmer.cli.train import build_parser, read_arguments
from mmer.training.config import TrainingConfig, config_from_dict, read_settings
from mmer.training.data_module import build_transforms
from mmer.training.protocol import Job, differences, plan_jobs
from tests.training.cases import SETTINGS, tiny_config

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_complete(path: Path) -> None:
    config = config_from_dict(read_settings(path), str(path))
    assert config.name == path.stem
    assert config_from_dict(config.to_dict(), "again") == config
    transforms = [t for t in config.data.transforms if not t.get("fit")]
    assert len(build_transforms(transforms)) == len(transforms)
    assert plan_jobs(config)
    for figure in config.evaluation.published:
        assert figure["name"]
        assert all(0 <= score <= 1 for score in figure["scores"].values())


def test_defaults_survive_yaml() -> None:
    config = TrainingConfig()
    again = config_from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict())), "again")
    assert again == config


def test_command_line_overrides_the_file(file: Path) -> None:
    words = "--trainer.max_epochs 7 --model.dropout 0.5 --modalities EDA,BVP --seeds 3 --folds all"
    config, folder, resume = read_arguments([str(file), *words.split()])
    assert config.trainer.max_epochs == 7
    assert config.model["dropout"] == 0.5
    assert config.model["embed_dim"] == 8
    assert config.data.modalities == ["EDA", "BVP"]
    assert (config.protocol.seeds, config.protocol.folds) == (3, "all")
    assert (folder, resume) == (Path("runs/tiny"), False)


def test_options_may_come_before_the_file_and_later_files_override(
    file: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more.yaml"
    more.write_text("optimizer: {learning_rate: 0.25}\n")
    words = ["--trainer.max_epochs", "5", "--config", str(more), str(file), "--output", "here"]
    config, folder, _ = read_arguments(words)
    assert (config.trainer.max_epochs, config.optimizer.learning_rate) == (5, 0.25)
    assert folder == Path("here")


def test_new_runs_get_new_folders(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    assert read_arguments([str(file)])[1] == Path("runs/tiny-2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.max_epoch", "3"], "unrecognized arguments: --trainer.max_epoch"),
        (["--trainer.max_epochs", "few"], "trainer.max_epochs"),
        (["--trainer.max_epochs", "0"], r"trainer.max_epochs: wanted at least 1, got 0"),
        (["--data.split.fold", "9"], r"data.split.fold: wanted 0 .. 2, got 9"),
        (["--data.train_seconds", "[300, 60]"], r"data.train_seconds: wanted \[shortest"),
        (["--loss.classes", "hinge"], "loss.classes"),
        (["--resume", "a", "--output", "b"], "--output: cannot be given with --resume"),
        (["--data.transforms", "[{name: x}]"], "data.transforms: wanted {transform: NAME"),
    ],
)
def test_wrong_words_are_named(file: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_arguments([str(file), *words])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dta: {}", r"config\.yaml: no setting is named 'dta'"),
        ("data: 3", r"config\.yaml: data: wanted a section of settings, got 3"),
        ("trainer: {epochs: 3}", "epochs"),
        ("[1, 2]", r"config\.yaml: wanted sections of settings"),
        ("a: [", r"config\.yaml: not a YAML file"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_arguments([str(path)])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.yaml: no such configuration file"):
        read_arguments([str(tmp_path / "no.yaml")])
    with pytest.raises(ValueError, match="CONFIG: a configuration file is needed"):
        read_arguments([])


def test_help_lists_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    text = build_parser().format_help()
    for option in ("--data.split.folds", "--trainer.max_epochs", "--protocol.seeds", "--resume"):
        assert option in text


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ({}, [(3, 0)]),
        ({"folds": 1}, [(3, 1)]),
        ({"folds": "all"}, [(3, 0), (3, 1), (3, 2)]),
        ({"folds": [0, 2], "seeds": 2}, [(3, 0), (4, 0), (3, 2), (4, 2)]),
        ({"seeds": [7, 9]}, [(7, 0), (9, 0)]),
    ],
)
def test_jobs_of_a_protocol(protocol: dict[str, Any], expected: list[tuple[int, int]]) -> None:
    jobs = plan_jobs(tiny_config(protocol=protocol))
    assert [(job.seed, job.fold) for job in jobs] == expected


def test_jobs_of_several_splits_and_modalities() -> None:
    config = tiny_config(
        protocol={"splits": ["subject", "given"], "folds": "all", "each_modality": True},
        data__modalities=["EDA", "BVP"],
    )
    jobs = plan_jobs(config)
    assert len({job.name for job in jobs}) == len(jobs) == 3 * 3 + 3
    job = Job("subject", ("BVP",), 5, 2)
    own = job.config(config)
    assert (own.seed, own.data.split.fold, own.data.modalities) == (5, 2, ["BVP"])
    assert len(plan_jobs(own)) == 1
    assert [job.modalities for job in jobs[:3]] == [None, ("EDA",), ("BVP",)]


def test_differences_are_named() -> None:
    assert differences(tiny_config(), tiny_config()) == []
    changed = differences(tiny_config(), tiny_config(seed=4, model__dropout=0.5))
    assert changed == ["model.dropout: 0.2 -> 0.5", "seed: 3 -> 4"]
