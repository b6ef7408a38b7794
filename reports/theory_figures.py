"""What is known of the study's variants before any training: their rotary slots and their semantic preference."""

from markupsafe import Markup

from reports import figures
from reports.results import StudyResults
from reports.sections import Figure, page_looks

# What each axis of a slot is called, and how it is drawn (reports.figures.AXIS_COLOURS).
AXES = {
    0: ("t", "orange: time"),
    1: ("h", "blue: rows"),
    2: ("w", "green: columns"),
    3: ("fourth", "pink: a fourth index"),
    -1: ("unrotated", "outlined: not rotated"),
}


def slot_figure(results: StudyResults) -> Figure:
    rows: list[tuple[str, list[int]]] = []
    for variant in results.record["variants"]:
        slots = variant["slot_axes"]
        label = variant["variant"]
        if any(label == known.split(", head")[0] for known, _ in rows):
            continue  # the same at another setting
        if isinstance(slots[0], list):
            rows += [(f"{label}, head {head}", axes) for head, axes in enumerate(slots)]
        else:
            rows.append((label, slots))
    said = "; ".join(
        f"{label}: " + ", ".join(f"{slots.count(axis)} {name}" for axis, (name, _) in AXES.items() if axis in slots)
        for label, slots in rows
    )
    drawn = {axis for _, slots in rows for axis in slots}
    svg = figures.slot_map("slots", f"Which axis each rotary slot follows. {said}.", rows)
    return Figure(
        Markup(svg),
        "Which axis each rotary slot follows",
        ", ".join(look for axis, (_, look) in AXES.items() if axis in drawn),
    )


def preference_figure(results: StudyResults) -> Figure:
    """How far a similar key outscores an unrelated one against their distance, as the study's record holds it.

    The record's `preference` of a variant: frames and S / (2 sigma^2) (hope_core.theory.over_frames), equally long.
    """
    lines: dict[str, tuple[str, dict[str, list[float]]]] = {}
    for variant in results.record["variants"]:
        lines.setdefault(variant["variant"], (variant["name"], variant["preference"]))
    looks = page_looks(results)
    said = "; ".join(
        f"{label} at least {min(curve['values']):.1f}, at {curve['frames'][-1]} frames {curve['values'][-1]:.1f}"
        for label, (_, curve) in lines.items()
    )
    alt = f"Advantage of a similar key over an unrelated one against their distance in frames. {said}."
    rows = [(looks[name], curve["frames"], curve["values"]) for name, curve in lines.values()]
    svg = figures.preference_curves("preference", alt, rows)
    return Figure(
        Markup(svg),
        "Semantic preference",
        "below zero an unrelated key outscores a similar one; each variant at its published scale",
    )
