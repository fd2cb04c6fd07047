"""The configuration: validated, strict, and the same after a trip through JSON."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmer.models import ModalityConfig, RecognizerConfig

SMALLEST = {"modalities": {"eda": {"features": 1}}, "num_classes": 2}

MODALITIES = st.builds(
    ModalityConfig,
    features=st.integers(2, 512),
    rate=st.none() | st.floats(0.1, 100.0),
    patch=st.integers(1, 64),
    normalize=st.booleans(),
)
CONFIGS = st.builds(
    RecognizerConfig,
    modalities=st.dictionaries(
        st.sampled_from(["eda", "bvp", "video", "audio_2", "Text"]), MODALITIES, min_size=1
    ),
    num_classes=st.integers(2, 8),
    num_values=st.integers(0, 2),
    value_range=st.none() | st.tuples(st.floats(-9.0, 0.0), st.floats(1.0, 9.0)),
    output=st.sampled_from(["frame", "sequence"]),
    encoder=st.sampled_from(["tcn", "chunked_attention"]),
    fusion=st.sampled_from(["bidirectional", "shared", "none"]),
    max_gap=st.none() | st.floats(0.0, 100.0),
    summaries=st.just(True),
    max_summaries=st.none() | st.integers(1, 9),
    modality_weights=st.sampled_from(["mean", "learned", "gated"]),
    dropout=st.floats(0.0, 0.9),
    text_dim=st.none() | st.integers(1, 512),
)


@given(config=CONFIGS)
def test_is_the_same_after_a_trip_through_json(config: RecognizerConfig) -> None:
    values = json.loads(json.dumps(config.to_dict()))
    again = RecognizerConfig.from_dict(values)
    assert again == config
    assert list(again.modalities) == list(config.modalities)
    assert set(values) == {field.name for field in fields(RecognizerConfig)}


def test_reads_nested_dictionaries_and_keeps_defaults() -> None:
    config = RecognizerConfig.from_dict(SMALLEST)
    assert config.modalities == {"eda": ModalityConfig(features=1)}
    assert config.embed_dim == RecognizerConfig(**SMALLEST).embed_dim == 64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**SMALLEST, "embed_dims": 8}, "embed_dims is no field of RecognizerConfig"),
        ({**SMALLEST, "modalities": {"eda": {"feature": 1}}}, "modalities.eda.feature is no field"),
        ({**SMALLEST, "modalities": {"eda": {}}}, "modalities.eda.*features"),
        ({**SMALLEST, "modalities": {"eda": {"features": 0}}}, "modalities.eda.features must"),
        ({**SMALLEST, "modalities": {"eda": 3}}, "modalities.eda must be a ModalityConfig"),
        ({"num_classes": 2}, "modalities must name at least one"),
        ({**SMALLEST, "modalities": [1]}, "modalities must map"),
        (3, "values must be a mapping"),
    ],
)
def test_from_dict_errors_name_the_key(values: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        RecognizerConfig.from_dict(values)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("num_classes", 1, ValueError),
        ("num_classes", "2", TypeError),
        ("num_values", -1, ValueError),
        ("value_range", (1.0, 1.0), ValueError),
        ("value_range", 3.0, TypeError),
        ("output", "word", ValueError),
        ("embed_dim", 65, ValueError),
        ("embed_dim", 64.0, TypeError),
        ("num_heads", 0, ValueError),
        ("encoder", "lstm", ValueError),
        ("encoder_layers", -1, ValueError),
        ("kernel_size", 4, ValueError),
        ("causal", 1, TypeError),
        ("chunk_size", 0, ValueError),
        ("lookback", -1, ValueError),
        ("lookahead", -1, ValueError),
        ("summaries", "yes", TypeError),
        ("max_summaries", 2, ValueError),
        ("min_wavelength", 0.0, ValueError),
        ("max_wavelength", 0.5, ValueError),
        ("fusion", "late", ValueError),
        ("fusion_layers", -1, ValueError),
        ("time_decay", None, TypeError),
        ("max_gap", -1.0, ValueError),
        ("gate_init", math.nan, ValueError),
        ("expansion", 0, ValueError),
        ("modality_weights", "sum", ValueError),
        ("pooling", "max", ValueError),
        ("dropout", 1.0, ValueError),
        ("attention_dropout", -0.1, ValueError),
        ("modality_dropout", 1.5, ValueError),
        ("text_dim", 0, ValueError),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, value: object, error: type[Exception]) -> None:
    config = RecognizerConfig(**SMALLEST)
    with pytest.raises(error, match=field):
        replace(config, **{field: value})


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("features", 0, ValueError),
        ("features", None, TypeError),
        ("rate", 0.0, ValueError),
        ("rate", "4 Hz", TypeError),
        ("patch", 0, ValueError),
        ("normalize", 1, TypeError),
    ],
)
def test_a_bad_modality_is_refused_by_name(
    field: str, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=field):
        ModalityConfig(**{"features": 3, field: value})


def test_a_single_feature_cannot_be_normalised() -> None:
    with pytest.raises(ValueError, match="normalize"):
        ModalityConfig(features=1, normalize=True)


@pytest.mark.parametrize("name", ["", "a.b", "a__b", "2d", "skin temp", 3])
def test_a_modality_needs_a_plain_name(name: object) -> None:
    with pytest.raises(ValueError, match="modalities must be named"):
        RecognizerConfig(modalities={name: ModalityConfig(1)}, num_classes=2)


def test_something_must_be_predicted() -> None:
    with pytest.raises(ValueError, match="nothing to predict"):
        RecognizerConfig(modalities={"eda": ModalityConfig(1)})


def test_cannot_be_changed_behind_the_models_back() -> None:
    with pytest.raises(AttributeError):
        RecognizerConfig(**SMALLEST).dropout = 2.0
