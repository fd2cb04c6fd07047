"""Recordings, their readers, windows and batches.

A recording holds streams with their own rates, times and masks, and labels over time or one for
all. Readers build it from files, transforms turn signals into features, windows cut it,
:func:`collate` pads windows into the batches a model takes.
"""

from __future__ import annotations

from mmer.data.abaw import read_abaw
from mmer.data.batch import Batch, Window, collate
from mmer.data.errors import RecordingError
from mmer.data.folder import DATASETS, find_data_folder, load_dataset
from mmer.data.frame_statistics import FrameStatistics
from mmer.data.generate import generate_recordings
from mmer.data.label_transforms import AverageLabels, ThresholdValues, UnlabelledFrames
from mmer.data.mmsa import read_mmsa
from mmer.data.mult import read_mult
from mmer.data.npz import read_recordings, write_recordings
from mmer.data.pickles import load_pickle
from mmer.data.recording import Labels, Recording, Stream
from mmer.data.shared_sets import read_ceap360vr, read_mosi_utterances, read_stress_predict
from mmer.data.shortcuts import group_only_predictions, time_only_predictions
from mmer.data.splits import assign_folds, check_no_leak, official_split, split_by
from mmer.data.transform_base import Transform
from mmer.data.transforms import (
    TRANSFORMS,
    ClipOutliers,
    ClipValues,
    DeriveStream,
    JoinStreams,
    RenameStreams,
    SampleEvents,
    SelectColumns,
    SelectStreams,
    Standardize,
    StandardizePerRecording,
    StandardizePerSubject,
    apply_transforms,
    build_transform,
)
from mmer.data.windows import RandomWindows, SlidingWindows, SoftVote, Vote, cut_window

__all__ = [
    "DATASETS",
    "TRANSFORMS",
    "AverageLabels",
    "Batch",
    "ClipOutliers",
    "ClipValues",
    "DeriveStream",
    "FrameStatistics",
    "JoinStreams",
    "Labels",
    "RandomWindows",
    "Recording",
    "RecordingError",
    "RenameStreams",
    "SampleEvents",
    "SelectColumns",
    "SelectStreams",
    "SlidingWindows",
    "SoftVote",
    "Standardize",
    "StandardizePerRecording",
    "StandardizePerSubject",
    "Stream",
    "ThresholdValues",
    "Transform",
    "UnlabelledFrames",
    "Vote",
    "Window",
    "apply_transforms",
    "assign_folds",
    "build_transform",
    "check_no_leak",
    "collate",
    "cut_window",
    "find_data_folder",
    "generate_recordings",
    "group_only_predictions",
    "load_dataset",
    "load_pickle",
    "official_split",
    "read_abaw",
    "read_ceap360vr",
    "read_mmsa",
    "read_mosi_utterances",
    "read_mult",
    "read_recordings",
    "read_stress_predict",
    "split_by",
    "time_only_predictions",
    "write_recordings",
]
