"""The emotion recognition model and its losses."""

from __future__ import annotations

from .config import ModalityConfig, RecognizerConfig
from .recognizer import EmotionRecognizer, RecognizerOutput

__all__ = ["EmotionRecognizer", "ModalityConfig", "RecognizerConfig", "RecognizerOutput"]
