"""The commands, from a file of settings to a table and a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml
from pyarrow import csv, parquet

from mmer.cli import main
from mmer.data import generate_recordings, write_recordings
from tests.training.cases import SETTINGS


def test_train_evaluate_predict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    Path("tiny.yaml").write_text(yaml.safe_dump(SETTINGS))
    words = ["tiny.yaml", "--trainer.max_epochs", "1", "--modalities", "EDA,BVP"]
    assert main(["train", *words]) == 0
    printed = capsys.readouterr().out
    for text in ("EDA + BVP fused", "elapsed time alone", "people the model never saw"):
        assert text in printed
    assert main(["train", *words, "--output", "runs/tiny"]) == 2
    assert "--resume runs/tiny goes on with it" in capsys.readouterr().err
    assert main(["train", "--resume", "runs/tiny"]) == 0

    assert main(["evaluate", "runs/tiny/best.ckpt"]) == 0
    printed = capsys.readouterr().out
    assert "generated, test: 2 recordings of 2 people" in printed
    assert "elapsed time alone" in printed
    write_recordings("mine.npz", generate_recordings(2, 100.0, seed=9))
    assert main(["evaluate", "runs/tiny", "--data", "mine.npz"]) == 0
    assert "mine.npz: 2 recordings" in capsys.readouterr().out
    strangers = [
        dataclasses.replace(r, subject=f"stranger {r.subject}")
        for r in generate_recordings(2, 100.0)
    ]
    write_recordings("strangers.npz", strangers)
    assert main(["evaluate", "runs/tiny", "--data", "strangers.npz", "--split", "test"]) == 2
    assert "--split test: no recording of strangers.npz" in capsys.readouterr().err

    assert main(["predict", "runs/tiny", "G05", "--output", "out/g05"]) == 0
    table = parquet.read_table("out/g05.parquet")
    assert table.num_rows == 150
    assert table.column_names[:5] == [
        "time",
        "probability_rest",
        "probability_stress",
        "predicted",
        "uncertainty",
    ]
    assert {"contribution_EDA", "contribution_BVP", "true_class"} <= set(table.column_names)
    total = table["probability_rest"].to_numpy() + table["probability_stress"].to_numpy()
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    assert Path("out/g05.png").stat().st_size > 20_000
    capsys.readouterr()
    assert main(["predict", "runs/tiny", "G05", "--output", "out/g05"]) == 2
    assert "--force replaces it" in capsys.readouterr().err

    mine = ["predict", "runs/tiny", "mine.npz:G02", "--format", "csv", "--no-picture"]
    assert main(mine) == 0
    assert csv.read_csv("G02.csv").num_rows == 100
    assert not Path("G02.png").exists()
    capsys.readouterr()
    assert main(["predict", "runs/tiny", "mine.npz"]) == 2
    assert "holds 2 recordings, choose one by mine.npz:NAME" in capsys.readouterr().err
    assert main(["predict", "runs/tiny", "G99"]) == 2
    assert "neither a file nor a recording" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_broken_checkpoint_is_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"nothing")
    assert main([command, str(path), *(["G01"] if command == "predict" else [])]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{path}: truncated, corrupt or not a checkpoint" in error


def test_help_of_train_lists_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--help"])
    assert exit_.value.code == 0
    assert "--optimizer.learning_rate" in capsys.readouterr().out
