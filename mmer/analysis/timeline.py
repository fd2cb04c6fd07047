"""The timeline picture: when the state changes, how sure the model is, and what it saw."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmer.analysis.segments import StateSegment, format_time, frame_edges, state_segments
from mmer.training.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from mmer.data import Recording, Stream
    from mmer.training.prediction import Prediction

# Okabe and Ito (2008): told apart with every common colour vision deficiency.
STATE_COLOURS = (
    "#56B4E9",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#0072B2",
    "#F0E442",
    "#7F7F7F",
)
INK = "#222222"
QUIET = "#8C8C8C"
SIGNAL = "#5B6B7A"
# Entropy over its maximum; with two states a probability between .37 and .63.
UNSURE = 0.95
MINIMUM_MARKED_SHARE = 1 / 60
COLUMNS = 1800
LABEL_SHARE = 0.036
STRIP_HEIGHT = 0.2


def plot_timeline(
    prediction: Prediction,
    recording: Recording,
    path: str | os.PathLike[str],
    *,
    unseen: bool | None = None,
    generated: bool = False,
    modalities: Sequence[str] | None = None,
    shortest: float | None = None,
    threshold: float | None = None,
    note: str = "",
) -> Path:
    """Draw what the model says about one recording over time, above the signals it saw.

    From top to bottom: the true state where it is known and the predicted state as coloured bands;
        the probability (or the values) with the threshold, the unsure stretches shaded and the
        change points marked; then each modality's signal, standardised, hatched where it is
        missing.

    Args:
        prediction: Output of the model for this recording.
        recording: The recording, before any transform that replaces its signals.
        path: Picture to write; the ending (.png, .pdf, .svg) chooses the format. Written beside,
            then moved.
        unseen: Whether the person was kept out of training; None if it is not known.
        generated: Whether the recording is synthetic; the picture then says so in large letters.
        modalities: The modalities the model expects; those the recording lacks are shown as
            missing. By default those of the recording.
        shortest: Seconds that a state must last for its beginning to be marked as a change point.
            By default a 60th of the recording.
        threshold: Border between low and high values, drawn where the model estimates values.
        note: A line below the title, for example what to compare the score with.

    Returns:
        The path of the picture.

    Raises:
        ValueError: If ``prediction`` has no frame or belongs to another recording.
    """
    if len(prediction.times) == 0:
        raise ValueError(f"prediction of {prediction.identifier}: no frame to draw")
    if prediction.identifier != recording.identifier:
        raise ValueError(
            f"recording must be the one predicted, {prediction.identifier!r}, "
            f"got {recording.identifier!r}"
        )
    from matplotlib.figure import Figure

    names = list(modalities) if modalities is not None else list(recording.streams)
    edges = frame_edges(prediction.times)
    shown = (0.0, float(edges[-1]))
    if shortest is None:
        shortest = (shown[1] - shown[0]) * MINIMUM_MARKED_SHARE
    panels = ([] if prediction.probabilities is None else ["states", "probabilities"]) + [
        f"value {index}"
        for index in range(0 if prediction.values is None else prediction.values.shape[1])
    ]
    heights = [{"states": 0.85, "probabilities": 2.3}.get(panel, 1.6) for panel in panels]
    heights += [0.62] * len(names)
    figure = Figure(figsize=(12, 1.5 + 0.98 * sum(heights)), dpi=150, facecolor="white")
    axes: list[Axes] = list(
        figure.subplots(
            len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
        )[:, 0]
    )
    figure_height = figure.get_figheight()
    figure.subplots_adjust(
        left=0.105,
        right=0.985,
        top=1 - 1.08 / figure_height,
        bottom=0.55 / figure_height,
        hspace=0.13,
    )
    changes: list[StateSegment] = []
    row = 0
    if prediction.probabilities is not None:
        changes = state_segments(prediction.times, prediction.predicted, shortest)
        _draw_states(axes[0], prediction)
        _draw_probabilities(axes[1], prediction, shortest)
        _mark_changes(axes[0], changes[1:], shown)
        row = 2
    for index in range(0 if prediction.values is None else prediction.values.shape[1]):
        _draw_values(axes[row], prediction, index, threshold)
        row += 1
    for name in names:
        _draw_stream(
            axes[row],
            name,
            recording.streams.get(name),
            shown,
            prediction.times,
            prediction.modality_probabilities.get(name) if len(names) > 1 else None,
        )
        row += 1
    for axis in axes[1 if prediction.probabilities is not None else 0 :]:
        for segment in changes[1:]:
            axis.axvline(
                segment.start, color=INK, linewidth=0.7, linestyle=(0, (4, 3)), alpha=0.55, zorder=1
            )
    for axis in axes:
        axis.set_xlim(shown)
        for side in ("top", "right", "left", "bottom"):
            axis.spines[side].set_visible(side == "bottom" and axis is axes[-1])
        axis.tick_params(
            axis="x", length=0 if axis is not axes[-1] else 4, labelbottom=axis is axes[-1]
        )
    _time_axis(axes[-1], shown)
    _write_caption(figure, prediction, shortest, len(changes) > 1)
    _write_title(figure, prediction, recording, unseen, generated, note)
    with replace_file(path) as temporary:
        figure.savefig(temporary)
    return Path(path)


def _colour(state: int) -> str:
    return STATE_COLOURS[state % len(STATE_COLOURS)]


def _name(names: Sequence[str], index: int, kind: str = "class") -> str:
    return names[index] if index < len(names) else f"{kind} {index}"


def _draw_states(axis: Axes, prediction: Prediction) -> None:
    known = prediction.classes is not None and bool((prediction.classes >= 0).any())
    rows: list[tuple[str, NDArray[np.int64]]] = [("model", prediction.predicted)]
    if known and prediction.classes is not None:
        rows.insert(0, ("true", prediction.classes))
    duration = float(prediction.times[-1])
    for position, (_, states) in enumerate(rows):
        bottom = len(rows) - 1 - position
        for segment in state_segments(prediction.times, states):
            width = segment.end - segment.start
            axis.add_patch(
                _rectangle(segment.start, bottom + 0.06, width, 0.88, _colour(segment.state))
            )
            label = _name(prediction.class_names, segment.state)
            if width > duration * (0.012 + 0.0078 * len(label)):
                axis.text(
                    segment.start + width / 2,
                    bottom + 0.48,
                    label,
                    color="white" if segment.state % 8 in (1, 2, 5, 7) else INK,
                    ha="center",
                    va="center",
                    fontsize=10,
                    fontweight="bold",
                )
    axis.set_ylim(0, len(rows))
    axis.set_yticks(
        [len(rows) - 0.5 - index for index in range(len(rows))], [name for name, _ in rows]
    )
    axis.tick_params(axis="y", length=0, labelsize=11)


def _rectangle(left: float, bottom: float, width: float, height: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((left, bottom), width, height, facecolor=colour, edgecolor="none")


def _draw_probabilities(axis: Axes, prediction: Prediction, shortest: float) -> None:
    probabilities = prediction.probabilities
    assert probabilities is not None
    unsure = prediction.uncertainty > UNSURE
    for segment in state_segments(prediction.times, unsure.astype(np.int64), shortest / 3):
        if segment.state == 1:
            axis.axvspan(segment.start, segment.end, color="#DDDDDD", linewidth=0, zorder=0)
    times = prediction.times
    if probabilities.shape[1] == 2:
        curve = probabilities[:, 1]
        axis.fill_between(
            times,
            0.5,
            curve,
            where=curve >= 0.5,
            color=_colour(1),
            alpha=0.45,
            linewidth=0,
            interpolate=True,
        )
        axis.fill_between(
            times,
            0.5,
            curve,
            where=curve <= 0.5,
            color=_colour(0),
            alpha=0.45,
            linewidth=0,
            interpolate=True,
        )
        axis.plot(times, curve, color=INK, linewidth=1.1, zorder=3)
        axis.axhline(0.5, color=INK, linewidth=0.8, zorder=2)
        label = f"probability\nof {_name(prediction.class_names, 1)}"
    else:
        axis.stackplot(
            times,
            probabilities.T,
            colors=[_colour(i) for i in range(probabilities.shape[1])],
            alpha=0.75,
            linewidth=0,
        )
        label = "probability\nof each state"
    axis.set_ylim(0, 1)
    axis.set_yticks([0, 0.5, 1])
    axis.set_ylabel(label, fontsize=11)


def _draw_values(axis: Axes, prediction: Prediction, index: int, threshold: float | None) -> None:
    assert prediction.values is not None
    times, curve = prediction.times, prediction.values[:, index]
    if prediction.targets is not None and np.isfinite(prediction.targets[:, index]).any():
        axis.plot(times, prediction.targets[:, index], color=QUIET, linewidth=2.2, label="true")
    axis.plot(times, curve, color=INK, linewidth=1.4, label="model")
    if threshold is not None:
        axis.axhline(threshold, color=INK, linewidth=0.8)
        for side, colour in ((curve >= threshold, 1), (curve <= threshold, 0)):
            axis.fill_between(
                times,
                threshold,
                curve,
                where=side,
                color=_colour(colour),
                alpha=0.45,
                linewidth=0,
                interpolate=True,
                label="high" if colour else "low",
            )
    axis.set_ylabel(_name(prediction.value_names, index, "value"), fontsize=11)
    if index == 0:
        axis.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            fontsize=10,
            ncols=4,
            frameon=False,
            borderpad=0.1,
        )


def _mark_changes(axis: Axes, changes: Sequence[StateSegment], shown: tuple[float, float]) -> None:
    top = axis.get_ylim()[1]
    room = (shown[1] - shown[0]) * LABEL_SHARE
    free_from = [-np.inf, -np.inf]
    for segment in changes:
        level = next((i for i, free in enumerate(free_from) if segment.start >= free), None)
        if level is None:
            continue
        free_from[level] = segment.start + room
        axis.annotate(
            format_time(segment.start),
            (segment.start, top),
            xytext=(0, 3 + 12 * level),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9.5,
            color=INK,
            annotation_clip=False,
        )
    if changes:
        axis.annotate(
            "changes at",
            (0, top),
            xycoords=("axes fraction", "data"),
            xytext=(-6, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9.5,
            color="#555555",
        )


def _draw_stream(
    axis: Axes,
    name: str,
    stream: Stream | None,
    shown: tuple[float, float],
    times_alone: NDArray[np.float64],
    alone: NDArray[np.float32] | None,
) -> None:
    axis.set_yticks([])
    axis.set_ylabel(name, fontsize=11, rotation=0, ha="right", va="center", labelpad=10)
    if stream is None or not stream.mask.any():
        _hatch_missing(axis, *shown)
        axis.set_ylim(-1, 1)
        return
    real, values = stream.mask, stream.values.astype(np.float64)
    centre, spread = values[real].mean(axis=0), values[real].std(axis=0)
    standard = (values - centre) / np.where(spread > 1e-9, spread, 1.0)
    low, high = np.percentile(standard[real], [0.1, 99.9])
    for feature in range(min(3, standard.shape[1])):
        column = standard[:, feature]
        if stream.rate is None:
            axis.plot(stream.times[real], column[real], ".", color=SIGNAL, alpha=0.6, markersize=4)
        else:
            times, minimum, maximum = _envelope(stream.times, column, real, shown)
            axis.fill_between(times, minimum, maximum, color=SIGNAL, alpha=0.55, linewidth=0.8)
    height = high - low + 1e-3
    axis.set_ylim(low - (0.15 if alone is None else 0.4) * height, high + 0.15 * height)
    if alone is not None:
        _draw_alone(axis, times_alone, alone, shown)
    # Without a rate nobody can say when a sample is missing.
    if stream.rate is not None:
        for start, end in _gaps(stream.times, real, shown):
            _hatch_missing(axis, start, end)


def _draw_alone(
    axis: Axes, times: NDArray[np.float64], alone: NDArray[np.float32], shown: tuple[float, float]
) -> None:
    """A strip in the colours of the states, the paler the less sure this modality alone is."""
    from matplotlib.colors import to_rgb

    columns = shown[0] + (np.arange(COLUMNS) + 0.5) * (shown[1] - shown[0]) / COLUMNS
    nearest = np.clip(np.searchsorted(frame_edges(times), columns) - 1, 0, len(times) - 1)
    rows = alone[nearest]
    known = np.asarray(np.isfinite(rows).all(axis=1))
    rows = np.where(known[:, None], rows, 1.0)
    chance = 1 / rows.shape[1]
    sure = np.where(known, (rows.max(axis=1) - chance) / (1 - chance), 0.0)
    colours = np.array([to_rgb(_colour(state)) for state in range(rows.shape[1])])
    strip = np.concatenate([colours[rows.argmax(axis=1)], np.clip(sure, 0, 1)[:, None]], axis=1)
    axis.imshow(
        strip[None],
        extent=(*shown, 0.0, STRIP_HEIGHT),
        transform=axis.get_xaxis_transform(),
        aspect="auto",
        interpolation="nearest",
        zorder=1,
    )


def _envelope(
    times: NDArray[np.float64],
    values: NDArray[np.float64],
    real: NDArray[np.bool_],
    shown: tuple[float, float],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest value in each of a picture's columns, NaN without a real sample."""
    columns = min(COLUMNS, max(2, int(real.sum()) // 2))
    bins = np.clip(
        ((times - shown[0]) / (shown[1] - shown[0]) * columns).astype(int), 0, columns - 1
    )[real]
    minimum, maximum = np.full(columns, np.inf), np.full(columns, -np.inf)
    np.minimum.at(minimum, bins, values[real])
    np.maximum.at(maximum, bins, values[real])
    empty = np.isinf(minimum)
    minimum[empty], maximum[empty] = np.nan, np.nan
    centres = shown[0] + (np.arange(columns) + 0.5) * (shown[1] - shown[0]) / columns
    return centres, minimum, maximum


def _gaps(
    times: NDArray[np.float64], real: NDArray[np.bool_], shown: tuple[float, float]
) -> list[tuple[float, float]]:
    """Stretches without a real sample that are wide enough to be seen."""
    visible = (shown[1] - shown[0]) / 300
    present = np.r_[shown[0], times[real], shown[1]]
    widths = np.diff(present)
    return [
        (float(present[index]), float(present[index + 1]))
        for index in np.flatnonzero(widths > max(visible, 3 * float(np.median(widths))))
    ]


def _hatch_missing(axis: Axes, start: float, end: float) -> None:
    axis.axvspan(
        start, end, facecolor="#F4F4F4", edgecolor="#B0B0B0", hatch="////", linewidth=0, zorder=2
    )
    axis.text(
        (start + end) / 2,
        0.5,
        "missing",
        transform=axis.get_xaxis_transform(),
        ha="center",
        va="center",
        fontsize=10,
        color=INK,
        zorder=4,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.9},
    )


def _time_axis(axis: Axes, shown: tuple[float, float]) -> None:
    duration = shown[1] - shown[0]
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    step = next((step for step in steps if duration / step <= 14), 7200)
    ticks = np.arange(0, shown[1] + 1e-6, step)
    axis.set_xticks(ticks, [format_time(tick) for tick in ticks])
    axis.tick_params(axis="x", labelsize=10)


def _write_caption(figure: Any, prediction: Prediction, shortest: float, changed: bool) -> None:
    parts = ["time in min:sec"]
    if changed:
        parts.append(f"dashed: changes that last {shortest:.0f} s or more")
    if prediction.probabilities is not None and (prediction.uncertainty > UNSURE).any():
        parts.append("grey: unsure, near even odds")
    if len(prediction.modality_probabilities) > 1:
        parts.append("strips: what each signal alone says, pale = unsure")
    figure.text(
        0.985,
        0.07 / figure.get_figheight(),
        "  ·  ".join(parts),
        fontsize=9.5,
        ha="right",
        va="bottom",
        color="#555555",
    )


def _write_title(
    figure: Any,
    prediction: Prediction,
    recording: Recording,
    unseen: bool | None,
    generated: bool,
    note: str,
) -> None:
    height = figure.get_figheight()
    who = f"{recording.subject}" + (f", {recording.group}" if recording.group else "")
    met = {True: "a person the model never saw", False: "a person of the training set", None: ""}[
        unseen
    ]
    score = prediction.macro_f1
    parts = [part for part in (met, "" if score is None else f"macro-F1 {score:.2f}") if part]
    figure.text(0.012, 1 - 0.14 / height, who, fontsize=15, fontweight="bold", color=INK, va="top")
    figure.text(0.012, 1 - 0.47 / height, "  ·  ".join(parts), fontsize=11, color=INK, va="top")
    source = (
        "GENERATED DATA, no real person" if generated else f"data: {Path(recording.source).stem}"
    )
    figure.text(
        0.985,
        1 - 0.14 / height,
        source,
        fontsize=12 if not generated else 13,
        ha="right",
        va="top",
        color=INK if not generated else "#B00020",
        fontweight="bold" if generated else "normal",
    )
    if note:
        figure.text(
            0.985, 1 - 0.47 / height, note, fontsize=10, ha="right", va="top", color="#555555"
        )
