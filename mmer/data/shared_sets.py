"""Readers of three published data sets in the ``.npz`` files the project works with.

``ORIGINALS`` says of each where the original comes from and what its file holds, so that it can be
converted.
"""

from __future__ import annotations

import os
import re

import numpy as np

from mmer.data.arrays import ArrayFile, check_array, check_duration, check_unique
from mmer.data.errors import RecordingError, reading
from mmer.data.recording import Labels, Recording, Stream

ORIGINALS = {
    "stress_predict": (
        "Stress-Predict (MIT; Iqbal et al., Sensors 22(21):8135), "
        "https://github.com/italha-d/Stress-Predict-Dataset: Raw_data/SXX/{EDA,TEMP,BVP,ACC}.csv "
        "hold the streams of one person (first line the start in Unix time, second the rate), "
        "Processed_data/Improved_All_Combined_hr_rsp_binary.csv the label of each second. Cut the "
        "streams to the labelled seconds and save with numpy.savez as stress_predict.npz: SXX_y "
        "int8 (seconds,) 0 rest / 1 stress, SXX_EDA and SXX_TEMP float32 (n,) at 4 Hz, SXX_BVP "
        "int16 (n,) at 64 Hz, SXX_ACC int8 (n, 3) at 32 Hz."
    ),
    "ceap360vr": (
        "CEAP-360VR (CC BY-NC 4.0; Xue et al., IEEE TMM 2021, 10.1109/TMM.2021.3124080), "
        "https://github.com/cwi-dis/CEAP-360VR-Dataset: the Frame data of the annotations, the "
        "pupils, EM_Fixation and HM_ScanPath. Save with numpy.savez as ceap360vr.npz, for person "
        "PN and video VM: PN_VM_va (frames, 2) valence and arousal 1..9 and PN_VM_pd (frames, 2 "
        "or more) left and right pupil, both at 30 Hz (V1: 25 Hz), PN_VM_head (n, 2) pitch and "
        "yaw at 5 Hz, PN_VM_fix (events, 4) first frame, last frame, pitch and yaw of each "
        "fixation."
    ),
    "mosi_utterances": (
        "CMU-MOSI, features of each utterance as published with Poria et al., "
        "https://github.com/soujanyaporia/multimodal-sentiment-analysis: save with numpy.savez as "
        "mosi_utterances.npz, for PART in train and test: PART_vid (utterances,) the video of "
        "each utterance as a string, in order, PART_text, PART_audio and PART_video (utterances, "
        "features), PART_y 0 negative / 1 positive."
    ),
}

STRESS_PREDICT_RATES = {"EDA": 4.0, "TEMP": 4.0, "BVP": 64.0, "ACC": 32.0}
# The skin conductance of S08 is flat throughout: there is no signal, so it is really missing.
STRESS_PREDICT_MISSING = frozenset({("S08", "EDA")})
# The sensor starts and stops its streams up to a few seconds apart.
STRESS_PREDICT_TOLERANCE = 5.0

CEAP_SECONDS = 60.0
CEAP_FRAME_RATE = 30.0
CEAP_OTHER_FRAME_RATES = {"V1": 25.0}
CEAP_HEAD_RATE = 5.0
CEAP_TOLERANCE = 1.0


def read_stress_predict(path: str | os.PathLike[str]) -> list[Recording]:
    """Read Stress-Predict: a wrist sensor for most of an hour, rest or stress task in every second.

    It is stress, not emotion. Everyone followed the same protocol, so the elapsed time alone scores
    a macro-F1 of .84: see :func:`~mmer.data.time_only_predictions`.

    Args:
        path: ``stress_predict.npz``.

    Returns:
        One recording per person: EDA and TEMP (4 Hz), BVP (64 Hz), ACC (32 Hz, x y z), in the
        sensor's units, and one label in the middle of each second. EDA of S08, which is
        flat throughout, is wholly masked.

    Raises:
        RecordingError: If the file is broken; it names the key.
        FileNotFoundError: If there is no such file.
    """
    with ArrayFile(path) as file:
        people = [key[: -len("_y")] for key in file.keys if key.endswith("_y")]
        if not people:
            raise RecordingError(path, "SXX_y", "missing: there are no labels of anybody")
        return [_stress_predict_person(file, person) for person in people]


def _stress_predict_person(file: ArrayFile, person: str) -> Recording:
    classes = file.array(f"{person}_y", kind="integer", shape=(None,), low=0, high=1)
    if len(classes) == 0:
        raise RecordingError(file.path, f"{person}_y", "is empty")
    streams = {}
    for name, rate in STRESS_PREDICT_RATES.items():
        key = f"{person}_{name}"
        shape = (None, 3) if name == "ACC" else (None,)
        values = file.array(key, shape=shape, finite=True)
        check_duration(file.path, key, len(values), rate, len(classes), STRESS_PREDICT_TOLERANCE)
        mask = np.full(len(values), (person, name) not in STRESS_PREDICT_MISSING)
        with reading(file.path, key):
            streams[name] = Stream.regular(values, rate, mask=mask)
    with reading(file.path, person):
        return Recording(
            identifier=person,
            subject=person,
            streams=streams,
            labels=Labels(classes=classes, times=np.arange(len(classes), dtype=np.float64) + 0.5),
            class_names=("rest", "stress"),
            source=str(file.path),
        )


def read_ceap360vr(path: str | os.PathLike[str], *, luminance: bool = False) -> list[Recording]:
    """Read CEAP-360VR: pupils, head and gaze while somebody watches a video and rates how it feels.

    The video alone says most of the answer: see :func:`~mmer.data.group_only_predictions`.

    Args:
        path: ``ceap360vr.npz``.
        luminance: Add the part of the pupil's width that the video's brightness explains as a
            stream "luminance". It tells which video is shown, so a score with it says little.

    Returns:
        One recording per person and video, ``group`` the video: "pupil" (left, right width; 30 Hz,
        25 Hz in V1), "head" (pitch, yaw in degrees; 5 Hz), "fixation" (seconds it lasted, pitch,
        yaw in degrees; irregular, at the time it ended), and valence and arousal, 1 to 9, for each
        video frame.

    Raises:
        RecordingError: If the file is broken; it names the key.
        FileNotFoundError: If there is no such file.
    """
    with ArrayFile(path) as file:
        names = [key[: -len("_va")] for key in file.keys if key.endswith("_va")]
        if not names:
            raise RecordingError(path, "PN_VM_va", "missing: there are no labels of anybody")
        return [_ceap_recording(file, name, luminance) for name in names]


def _ceap_recording(file: ArrayFile, name: str, luminance: bool) -> Recording:
    parsed = re.fullmatch(r"(P\d+)_(V\d+)", name)
    if parsed is None:
        raise RecordingError(file.path, f"{name}_va", "the key must be PN_VM_va, N and M numbers")
    subject, video = parsed.groups()
    rate = CEAP_OTHER_FRAME_RATES.get(video, CEAP_FRAME_RATE)
    values = file.array(f"{name}_va", shape=(None, 2), finite=True, low=1, high=9)
    check_duration(file.path, f"{name}_va", len(values), rate, CEAP_SECONDS, CEAP_TOLERANCE)
    pupil = file.array(f"{name}_pd", finite=True)
    columns = 4 if luminance else 2
    if pupil.ndim != 2 or pupil.shape[1] < columns:
        raise RecordingError(
            file.path,
            f"{name}_pd",
            f"must be (frames, {columns} or more), got shape {pupil.shape}",
        )
    check_duration(file.path, f"{name}_pd", len(pupil), rate, CEAP_SECONDS, CEAP_TOLERANCE)
    head = file.array(f"{name}_head", shape=(None, 2), finite=True)
    check_duration(
        file.path, f"{name}_head", len(head), CEAP_HEAD_RATE, CEAP_SECONDS, CEAP_TOLERANCE
    )
    fixations = file.array(f"{name}_fix", shape=(None, 4), finite=True)
    check_array(file.path, f"{name}_fix", fixations[:, :2], low=0, high=len(values))
    if (fixations[:, 1] < fixations[:, 0]).any():
        raise RecordingError(file.path, f"{name}_fix", "a fixation ends before it starts")
    with reading(file.path, f"{name}_fix"):
        lasted = (fixations[:, 1] - fixations[:, 0]) / rate
        events = Stream.at(np.column_stack([lasted, fixations[:, 2:]]), fixations[:, 1] / rate)
    with reading(file.path, name):
        streams = {
            "pupil": Stream.regular(pupil[:, :2], rate),
            "head": Stream.regular(head, CEAP_HEAD_RATE),
            "fixation": events,
        }
        if luminance:
            streams["luminance"] = Stream.regular(pupil[:, 3], rate)
        return Recording(
            identifier=name,
            subject=subject,
            group=video,
            streams=streams,
            labels=Labels(values=values, times=np.arange(len(values)) / rate),
            value_names=("valence", "arousal"),
            source=str(file.path),
        )


def read_mosi_utterances(path: str | os.PathLike[str]) -> list[Recording]:
    """Read CMU-MOSI: the utterances of a video in order, as text, audio and video features.

    Args:
        path: ``mosi_utterances.npz``.

    Returns:
        One recording per video. Time counts utterances: one a second, so the streams "text",
        "audio" and "video" have the real number of utterances and share their times with the
        labels. The published split is kept as the first part of the identifier, "train/..." or
        "test/..." (see :func:`~mmer.data.official_split`).

    Raises:
        RecordingError: If the file is broken; it names the key.
        FileNotFoundError: If there is no such file.
    """
    recordings = []
    with ArrayFile(path) as file:
        for part in ("train", "test"):
            videos = np.array(file.texts(f"{part}_vid"), dtype=np.str_)
            count = len(videos)
            classes = file.array(f"{part}_y", kind="integer", shape=(count,), low=0, high=1)
            features = {
                name: file.array(f"{part}_{name}", shape=(count, None), finite=True)
                for name in ("text", "audio", "video")
            }
            starts = np.flatnonzero(np.r_[True, videos[1:] != videos[:-1]])[:count]
            check_unique(file.path, f"{part}_vid", [str(videos[start]) for start in starts])
            for start, end in zip(starts, [*starts[1:], count], strict=True):
                video = str(videos[start])
                with reading(file.path, f"{part}_vid {video}"):
                    recordings.append(
                        Recording(
                            identifier=f"{part}/{video}",
                            subject=video,
                            group=video,
                            streams={
                                name: Stream.regular(values[start:end], 1.0)
                                for name, values in features.items()
                            },
                            labels=Labels(classes=classes[start:end], times=np.arange(end - start)),
                            class_names=("negative", "positive"),
                            source=str(file.path),
                        )
                    )
    if not recordings:
        raise RecordingError(path, "train_vid", "there is no utterance")
    return recordings
