"""What a recogniser is made of: plain, validated, JSON and YAML both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from mmer.layers.checks import (
    check_choice,
    check_count,
    check_flag,
    check_head_dim,
    check_number,
    check_probability,
)


@dataclass(frozen=True)
class ModalityConfig:
    """One input of the model.

    Attributes:
        features: width of a sample.
        rate: samples per second; None if irregular, then times must be given with every call.
        patch: samples that are folded into one token. A fast stream should come to about one token
            per output frame.
        normalize: LayerNorm each sample over its features first: for embeddings of frozen networks,
            not for few physical quantities, whose level it would take away.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a field is out of range.
    """

    features: int
    rate: float | None = None
    patch: int = 1
    normalize: bool = False

    def __post_init__(self) -> None:
        check_count("features", self.features, low=1)
        if self.rate is not None:
            check_number("rate", self.rate, low=1e-6, high=1e6)
        check_count("patch", self.patch, low=1)
        check_flag("normalize", self.normalize)
        if self.normalize and self.features < 2:
            raise ValueError(
                "normalize must be False for a single feature, which it would set to 0"
            )


@dataclass(frozen=True)
class RecognizerConfig:
    """An emotion recogniser.

    Attributes:
        modalities: name to configuration, in the order of ``RecognizerOutput.weights``. Names are
            Python identifiers without a double underscore.
        num_classes: classes to tell apart; None for no classification.
        num_values: values to estimate, say valence and arousal; 0 for none.
        value_range: (lowest, highest) value that can be estimated; None for no limits.
        output: "frame" gives a result at every output time, "sequence" one per item.
        embed_dim: width of all tokens.
        num_heads: attention heads; divides ``embed_dim``.
        encoder: what each modality's tokens go through on their own: "tcn" or "chunked_attention".
        encoder_layers: residual blocks of the encoder; 0 for none.
        kernel_size: taps of the TCN's convolutions; odd unless causal.
        causal: the encoders see the present and the past only (fusion sees the whole window all the
            same).
        chunk_size: tokens in a chunk of chunked attention.
        lookback: chunks before its own that a token sees.
        lookahead: chunks after its own that a token sees; of no effect if causal.
        summaries: a token also sees summaries of all older chunks.
        max_summaries: only the newest this many; None for all.
        min_wavelength: seconds, shortest rotary wavelength of chunked attention.
        max_wavelength: seconds, longest.
        fusion: how each pair of modalities attends to each other: "bidirectional", "shared", or
            "none".
        fusion_layers: times that it is done.
        time_decay: learnable decay of cross-attention with distance in time.
        max_gap: seconds; tokens further apart do not see each other in fusion. None for no limit.
        gate_init: first value of the gates through which fusion enters; 0 starts with independent
            modalities.
        expansion: how many times wider than ``embed_dim`` the feed-forward layers are.
        modality_weights: how the modalities present are averaged: "mean" (equally), "learned" (one
            learnable weight for each) or "gated" (weights computed for every frame).
        pooling: how a sequence is pooled over time: "attention" (learnable) or "mean". Only for
            output "sequence".
        dropout: probability that an activation is dropped in training (in the TCN, a channel for
            the whole window).
        attention_dropout: probability that an attention weight is dropped in training.
        modality_dropout: probability that a modality of an item is hidden in training; never all
            that it has.
        text_dim: width of the class prompts' embeddings for the contrastive loss; None for no such
            loss.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a field is out of range, or there is nothing to predict.
    """

    modalities: dict[str, ModalityConfig] = field(default_factory=dict)
    num_classes: int | None = None
    num_values: int = 0
    value_range: tuple[float, float] | None = None
    output: Literal["frame", "sequence"] = "frame"
    embed_dim: int = 64
    num_heads: int = 4
    encoder: Literal["tcn", "chunked_attention"] = "tcn"
    encoder_layers: int = 4
    kernel_size: int = 5
    causal: bool = False
    chunk_size: int = 32
    lookback: int = 1
    lookahead: int = 1
    summaries: bool = False
    max_summaries: int | None = None
    min_wavelength: float = 2.0
    max_wavelength: float = 600.0
    fusion: Literal["bidirectional", "shared", "none"] = "bidirectional"
    fusion_layers: int = 1
    time_decay: bool = True
    max_gap: float | None = None
    gate_init: float = 1.0
    expansion: int = 2
    modality_weights: Literal["mean", "learned", "gated"] = "learned"
    pooling: Literal["attention", "mean"] = "attention"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    modality_dropout: float = 0.0
    text_dim: int | None = None

    def __post_init__(self) -> None:
        self._read_modalities()
        if self.num_classes is not None:
            check_count("num_classes", self.num_classes, low=2)
        check_count("num_values", self.num_values, low=0)
        if self.num_classes is None and self.num_values == 0 and self.text_dim is None:
            raise ValueError(
                "num_classes, num_values or text_dim must be given: there is nothing to predict"
            )
        self._read_value_range()
        for name, choices in (
            ("output", ("frame", "sequence")),
            ("encoder", ("tcn", "chunked_attention")),
            ("fusion", ("bidirectional", "shared", "none")),
            ("modality_weights", ("mean", "learned", "gated")),
            ("pooling", ("attention", "mean")),
        ):
            check_choice(name, getattr(self, name), choices)
        for name, low in (
            ("embed_dim", 1),
            ("num_heads", 1),
            ("encoder_layers", 0),
            ("kernel_size", 1),
            ("chunk_size", 1),
            ("lookback", 0),
            ("lookahead", 0),
            ("fusion_layers", 0),
            ("expansion", 1),
        ):
            check_count(name, getattr(self, name), low=low)
        for name in ("max_summaries", "text_dim"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), low=1)
        for name in ("causal", "summaries", "time_decay"):
            check_flag(name, getattr(self, name))
        for name in ("dropout", "attention_dropout", "modality_dropout"):
            check_probability(name, getattr(self, name))
        check_head_dim(self.embed_dim, self.num_heads)
        if self.encoder == "tcn" and not self.causal and self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd unless causal, got {self.kernel_size}")
        if self.max_summaries is not None and not self.summaries:
            raise ValueError(
                f"max_summaries must be None without summaries, got {self.max_summaries}"
            )
        check_number("min_wavelength", self.min_wavelength, low=1e-6, high=1e9)
        check_number("max_wavelength", self.max_wavelength, low=self.min_wavelength, high=1e9)
        check_number("gate_init", self.gate_init, low=-1e4, high=1e4)
        if self.max_gap is not None:
            check_number("max_gap", self.max_gap, low=0.0, high=1e9)

    def _read_modalities(self) -> None:
        if not isinstance(self.modalities, Mapping):
            raise TypeError(
                f"modalities must map names to ModalityConfig, got {type(self.modalities).__name__}"
            )
        if not self.modalities:
            raise ValueError("modalities must name at least one modality, got none")
        modalities = {}
        for name, modality in self.modalities.items():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name) or "__" in name:
                raise ValueError(
                    "modalities must be named by letters, digits and single underscores, a letter "
                    f"first, got {name!r}"
                )
            if isinstance(modality, Mapping):
                modality = _build(ModalityConfig, modality, f"modalities.{name}.")
            elif not isinstance(modality, ModalityConfig):
                raise TypeError(
                    f"modalities.{name} must be a ModalityConfig, got {type(modality).__name__}"
                )
            modalities[name] = modality
        object.__setattr__(self, "modalities", modalities)

    def _read_value_range(self) -> None:
        if self.value_range is None:
            return
        if not isinstance(self.value_range, (tuple, list)) or len(self.value_range) != 2:
            raise TypeError(
                f"value_range must be a pair (lowest, highest), got {self.value_range!r}"
            )
        low, high = (check_number("value_range", x, low=-1e9, high=1e9) for x in self.value_range)
        if low >= high:
            raise ValueError(f"value_range must be (lowest, highest), got {self.value_range!r}")
        object.__setattr__(self, "value_range", (low, high))

    def to_dict(self) -> dict[str, Any]:
        """Return dictionaries, lists, strings and numbers, ready for JSON or YAML."""
        values = asdict(self)
        if self.value_range is not None:
            values["value_range"] = list(self.value_range)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecognizerConfig:
        """Read what :meth:`to_dict` wrote.

        Args:
            values: field names to values; fields that are left out keep their defaults.

        Raises:
            TypeError: ``values`` is no mapping, or a field has the wrong type.
            ValueError: a key that is no field, a missing field, or a value out of range; the key is
                named.
        """
        return _build(cls, values, "")


def _build(cls: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    """Build a dataclass from a mapping; errors name the key with ``prefix`` before it."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{prefix or 'values'} must be a mapping, got {type(values).__name__}")
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            raise ValueError(
                f"{prefix}{key} is no field of {cls.__name__}; it has {', '.join(known)}"
            )
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{prefix}{error}") from error
