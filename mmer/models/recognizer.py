"""The emotion recogniser: any number of modalities in, classes and values over time out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmer.layers.checks import check_mask, check_sequence, check_times
from mmer.layers.padding import zero_padding

from .alignment import TimePooling, masked_softmax, to_frames
from .config import RecognizerConfig
from .encoder import TemporalEncoder
from .fusion import PairwiseFusion
from .stem import PatchEmbedding, Tokens

MAX_TEXT_SCALE = 100.0
"""Upper limit of the contrastive logits' factor, as in CLIP."""


class RecognizerOutput(NamedTuple):
    """What the recogniser returns; ``frames`` is 1 for output "sequence".

    Attributes:
        logits: (batch, frames, classes), or None without classes.
        values: (batch, frames, num_values), or None without values.
        embeddings: (batch, frames, embed_dim), what the heads read; 0 at frames that are not real.
        weights: (batch, frames, modalities), the share of each modality in ``embeddings``, in the
            order of the configuration: they add up to 1, and are 0 for modalities that are missing.
        modality_embeddings: (batch, frames, embed_dim) of each modality that was given;
            ``embeddings`` is their mean by ``weights``. ``EmotionRecognizer.classify`` and
            ``.estimate`` tell what each would say alone.
        text_embeddings: (batch, frames, text_dim) for the contrastive loss, or None without
            ``text_dim``.
    """

    logits: Tensor | None
    values: Tensor | None
    embeddings: Tensor
    weights: Tensor
    modality_embeddings: dict[str, Tensor]
    text_embeddings: Tensor | None


class EmotionRecognizer(nn.Module):
    """Emotion recognition over time from any number of modalities, after arXiv 2603.11971.

    Each modality is folded into tokens (:class:`~mmer.models.stem.PatchEmbedding`) and goes through
    a temporal encoder of its own; every pair of modalities attends to each other
    (:class:`~mmer.models.fusion.PairwiseFusion`), at their own rates; the tokens are brought to the
    output times (:func:`~mmer.models.alignment.to_frames`) or pooled over the sequence, averaged
    over the modalities present, and read by a linear head.

    Any modality may be missing, for a whole call or for single items of a batch (its mask False
    throughout): the result is exactly that of the remaining ones. An item without any real sample
    gets the heads' answer to zeros. What stands in padded samples, NaN included, has no influence,
    and neither have the other items of the batch.

    State dict: ``stems.NAME.*``, ``encoders.NAME.*``, ``fusion.LAYER.*``, ``norms.NAME.weight``,
    ``.bias``, ``pooling.*`` (sequence), ``modality_scores`` (learned weights), ``gates.NAME.*``
    (gated weights), ``class_head.*``, ``value_head.*``, ``to_text.weight`` and ``log_text_scale``
    (contrastive loss).

    Args:
        config: what the model is made of; kept as ``config``.
        backend: which implementation of the operators to use; see
            ``mmer.kernels.available_backends``.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: ``config`` is no RecognizerConfig.

    Example:
        >>> config = RecognizerConfig(
        ...     modalities={
        ...         "video": ModalityConfig(features=512, rate=5.0),
        ...         "audio": ModalityConfig(features=768, rate=50.0, patch=10),
        ...     },
        ...     num_classes=8,
        ... )
        >>> model = EmotionRecognizer(config)
        >>> values = {"video": torch.randn(2, 300, 512), "audio": torch.randn(2, 3000, 768)}
        >>> model(values, output_times=torch.arange(60.0).expand(2, -1)).logits.shape
        torch.Size([2, 60, 8])
    """

    def __init__(
        self,
        config: RecognizerConfig,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, RecognizerConfig):
            raise TypeError(f"config must be a RecognizerConfig, got {type(config).__name__}")
        self.config = config
        width, names = config.embed_dim, tuple(config.modalities)
        self.stems = nn.ModuleDict(
            {
                name: PatchEmbedding(
                    modality.features,
                    width,
                    patch=modality.patch,
                    normalize=modality.normalize,
                    device=device,
                    dtype=dtype,
                )
                for name, modality in config.modalities.items()
            }
        )
        self.encoders = nn.ModuleDict(
            {
                name: TemporalEncoder(config, backend=backend, device=device, dtype=dtype)
                for name in names
            }
        )
        fusion_layers = config.fusion_layers if config.fusion != "none" and len(names) > 1 else 0
        self.fusion = nn.ModuleList(
            PairwiseFusion(config, backend=backend, device=device, dtype=dtype)
            for _ in range(fusion_layers)
        )
        self.norms = nn.ModuleDict(
            {name: nn.LayerNorm(width, device=device, dtype=dtype) for name in names}
        )
        self.pooling: TimePooling | None = None
        if config.output == "sequence":
            attention = config.pooling == "attention"
            self.pooling = TimePooling(width, attention=attention, device=device, dtype=dtype)
        if config.modality_weights == "learned" and len(names) > 1:
            self.modality_scores = nn.Parameter(torch.empty(len(names), device=device, dtype=dtype))
        else:
            self.register_parameter("modality_scores", None)
        self.gates: nn.ModuleDict | None = None
        if config.modality_weights == "gated" and len(names) > 1:
            self.gates = nn.ModuleDict(
                {name: nn.Linear(width, 1, device=device, dtype=dtype) for name in names}
            )
        self.dropout = nn.Dropout(config.dropout)
        self.class_head: nn.Linear | None = None
        if config.num_classes is not None:
            self.class_head = nn.Linear(width, config.num_classes, device=device, dtype=dtype)
        self.value_head: nn.Linear | None = None
        if config.num_values:
            self.value_head = nn.Linear(width, config.num_values, device=device, dtype=dtype)
        self.to_text: nn.Linear | None = None
        self.register_parameter("log_text_scale", None)
        if config.text_dim is not None:
            self.to_text = nn.Linear(width, config.text_dim, bias=False, device=device, dtype=dtype)
            self.log_text_scale = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self._reset_own_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew, in the model and in every layer."""
        for module in self.modules():
            if module is not self and callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        self._reset_own_parameters()

    def _reset_own_parameters(self) -> None:
        if self.modality_scores is not None:
            nn.init.zeros_(self.modality_scores)
        if self.gates is not None:
            # All modalities count equally at first.
            for parameter in self.gates.parameters():
                nn.init.zeros_(parameter)
        if self.log_text_scale is not None:
            nn.init.constant_(self.log_text_scale, math.log(1.0 / 0.07))

    @property
    def text_scale(self) -> Tensor:
        """Inverse temperature of the contrastive loss: learnable, at most 100 as in CLIP.

        Raises:
            ValueError: the model was made without ``text_dim``.
        """
        if self.log_text_scale is None:
            raise ValueError("config.text_dim must be given for text_scale, got None")
        return self.log_text_scale.clamp(max=math.log(MAX_TEXT_SCALE)).exp()

    def forward(
        self,
        values: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        times: Mapping[str, Tensor] | None = None,
        output_times: Tensor | None = None,
        output_mask: Tensor | None = None,
    ) -> RecognizerOutput:
        """Recognise.

        Args:
            values: (batch, time, features) of each modality at hand; anything in padded samples.
            masks: (batch, time) bool of each modality, True = real; one that is left out has no
                padding.
            times: (batch, time) seconds of each modality's samples, all from one origin; one that
                is left out is sampled at its configured rate from 0 on.
            output_times: (batch, frames) seconds at which results are wanted, not decreasing where
                real; by default the token times of the first modality. None for output "sequence".
            output_mask: (batch, frames) bool, True = a frame that is wanted; not read for output
                "sequence".

        Returns:
            The results; see :class:`RecognizerOutput`.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument has the wrong shape, an unknown modality, or no modality at all.
        """
        samples, batch = self._read(values, masks or {}, times or {})
        masks_kept = self._drop_modalities({name: s.mask for name, s in samples.items()})
        tokens: dict[str, Tokens] = {}
        for name, (x, _, seconds) in samples.items():
            tokens[name] = self.encoders[name](self.stems[name](x, masks_kept[name], seconds))
        frame_times, frame_mask = self._frames(tokens, batch, output_times, output_mask)
        for layer in self.fusion:
            tokens = layer(tokens)

        embeddings: dict[str, Tensor] = {}
        for name, fused in tokens.items():
            normed = fused._replace(values=zero_padding(self.norms[name](fused.values), fused.mask))
            if self.pooling is not None:
                embeddings[name] = self.pooling(normed)
            else:
                assert frame_times is not None
                embeddings[name] = to_frames(normed, frame_times, frame_mask)
        weights = self._weigh(embeddings, {name: t.mask.any(dim=1) for name, t in tokens.items()})
        columns = dict(zip(self.config.modalities, weights.unbind(dim=-1), strict=True))
        mean = sum(columns[name][..., None] * x for name, x in embeddings.items())
        assert isinstance(mean, Tensor)
        if self.pooling is None:
            mean = zero_padding(mean, frame_mask)
        return RecognizerOutput(
            logits=self.classify(mean) if self.class_head is not None else None,
            values=self.estimate(mean) if self.value_head is not None else None,
            embeddings=mean,
            weights=weights,
            modality_embeddings=embeddings,
            text_embeddings=self.to_text(mean) if self.to_text is not None else None,
        )

    def classify(self, embeddings: Tensor) -> Tensor:
        """Return the logits (..., classes) of embeddings, fused or of one modality.

        Raises:
            ValueError: the model was made without ``num_classes``.
        """
        if self.class_head is None:
            raise ValueError("config.num_classes must be given to classify, got None")
        logits: Tensor = self.class_head(self.dropout(embeddings))
        return logits

    def estimate(self, embeddings: Tensor) -> Tensor:
        """Return the values (..., num_values) of embeddings, fused or of one modality.

        Raises:
            ValueError: the model was made without ``num_values``.
        """
        if self.value_head is None:
            raise ValueError("config.num_values must be at least 1 to estimate, got 0")
        values: Tensor = self.value_head(self.dropout(embeddings))
        if self.config.value_range is None:
            return values
        low, high = self.config.value_range
        return low + (high - low) * values.sigmoid()

    def _read(
        self,
        values: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        times: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tokens], int]:
        """Check the inputs; return those with samples, in the configured order, and the batch."""
        known = self.config.modalities
        for argument, mapping in (("values", values), ("masks", masks), ("times", times)):
            if not isinstance(mapping, Mapping):
                raise TypeError(
                    f"{argument} must map modalities to tensors, got {type(mapping).__name__}"
                )
            for name in mapping:
                if name not in known:
                    raise ValueError(
                        f"{argument} must have modalities of the model, {', '.join(known)}, "
                        f"got {name!r}"
                    )
        batch: int | None = None
        samples = {}
        for name, modality in known.items():
            if name not in values:
                continue
            x, mask, seconds = values[name], masks.get(name), times.get(name)
            check_sequence(f"values[{name!r}]", x, modality.features)
            check_mask(f"masks[{name!r}]", mask, x)
            check_times(f"times[{name!r}]", seconds, x)
            if batch is None:
                batch = x.shape[0]
            if x.shape[0] != batch:
                raise ValueError(
                    f"values[{name!r}] must have the batch size of the others, {batch}, "
                    f"got {x.shape[0]}"
                )
            if mask is None:
                mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
            if seconds is None:
                if modality.rate is None:
                    raise ValueError(
                        f"times[{name!r}] must be given: modalities.{name}.rate is None"
                    )
                index = torch.arange(x.shape[1], dtype=torch.float32, device=x.device)
                seconds = (index / modality.rate).expand(batch, -1)
            if x.shape[1]:
                samples[name] = Tokens(x, mask, seconds)
        if batch is None or not samples:
            raise ValueError(
                f"values must have samples of at least one of {', '.join(known)}, got none"
            )
        return samples, batch

    def _drop_modalities(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Hide modalities of items at random in training, never all that an item has."""
        probability = self.config.modality_dropout
        if not self.training or probability == 0.0 or len(masks) < 2:
            return masks
        present = torch.stack([mask.any(dim=1) for mask in masks.values()], dim=1)
        draw = torch.rand(present.shape, device=present.device)
        # The largest draw among those present is always kept.
        best = draw.masked_fill(~present, -1.0).argmax(dim=1, keepdim=True)
        keep = (draw >= probability).scatter(1, best, True)
        return {
            name: mask & keep[:, column, None] for column, (name, mask) in enumerate(masks.items())
        }

    def _frames(
        self,
        tokens: dict[str, Tokens],
        batch: int,
        output_times: Tensor | None,
        output_mask: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Check the times and the mask of the output's frames; None for output "sequence"."""
        if self.pooling is not None:
            if output_times is not None:
                raise ValueError(
                    'output_times must be None for output "sequence", '
                    f"got {tuple(output_times.shape)}"
                )
            return None, None
        if output_times is None:
            first = next(iter(self.config.modalities))
            if first not in tokens:
                raise ValueError(f"output_times must be given when values lack {first!r}, got None")
            if output_mask is None:
                output_mask = tokens[first].mask
            output_times = tokens[first].times
        if not isinstance(output_times, Tensor) or not output_times.is_floating_point():
            raise TypeError("output_times must be a floating-point tensor of seconds")
        if output_times.dim() != 2 or output_times.shape[0] != batch:
            raise ValueError(
                f"output_times must have shape (batch, frames) with batch {batch}, "
                f"got {tuple(output_times.shape)}"
            )
        check_mask("output_mask", output_mask, output_times[..., None])
        return output_times, output_mask

    def _weigh(self, embeddings: dict[str, Tensor], present: dict[str, Tensor]) -> Tensor:
        """Return the share of each modality, (batch, frames, modalities)."""
        like = next(iter(embeddings.values()))
        batch, frames = like.shape[:2]
        absent = torch.zeros(batch, dtype=torch.bool, device=like.device)
        mask = torch.stack([present.get(name, absent) for name in self.config.modalities], dim=-1)
        if self.gates is not None:
            unread = like.new_zeros(batch, frames)
            scores = torch.stack(
                [
                    self.gates[name](embeddings[name]).squeeze(-1) if name in embeddings else unread
                    for name in self.config.modalities
                ],
                dim=-1,
            )
        elif self.modality_scores is not None:
            scores = self.modality_scores.expand(batch, frames, -1)
        else:
            scores = like.new_zeros(batch, frames, len(self.config.modalities))
        return masked_softmax(scores, mask[:, None], dim=-1).to(like.dtype)

    def extra_repr(self) -> str:
        """What it predicts."""
        parts = [f"output={self.config.output!r}"]
        if self.config.num_classes is not None:
            parts.append(f"num_classes={self.config.num_classes}")
        if self.config.num_values:
            parts.append(f"num_values={self.config.num_values}")
        return ", ".join(parts)
