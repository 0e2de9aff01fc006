"""One palette: a sampler has one colour and one marker in every figure, report and page.

Okabe and Ito's colours, told apart with any kind of colour vision, and relatives of them; their yellow and black, which vanish on a
white or a black page, are left out. Where colours are near each other, markers differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

COLOURS = (
    "#0f7fc4", "#d95f02", "#009e73", "#cc6fa7", "#b8860b", "#56a8d8", "#8a63c9", "#7f7f7f", "#a65141", "#5b8c2a",
    "#1b9e9e", "#e07b7b", "#3f51a3", "#9c9c1e", "#c2185b", "#6d8b74", "#b07d48", "#4f7fa8",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "p", "<")

BLUE, RED, GREEN, PINK, ORANGE, LIGHT_BLUE, PURPLE, GREY = COLOURS[:8]

_ORDER = ("repaint", "dps", "ddnm", "mcg", "diffpir", "unconditional", "pigdm", "replacement", "ddrm", "ddnm+")
EXACT = ("#222222", "o")
"""Of exact samples."""
CLASSICAL = "#9a9a9a"
"""Of methods without a network; their markers tell them apart."""


def look(sampler: str) -> tuple[str, str]:
    """Colour and marker of a sampler, by its name."""
    if sampler == "exact":
        return EXACT
    if sampler in _ORDER:
        number = _ORDER.index(sampler)
    else:
        from invdiff.samplers.base import sampler_names, samplers_that

        if sampler in (classical := list(samplers_that(baseline=True))):
            return CLASSICAL, MARKERS[classical.index(sampler) % len(MARKERS)]
        others = [name for name in sampler_names() if name not in _ORDER]
        number = len(_ORDER) + (others.index(sampler) if sampler in others else sum(map(ord, sampler)))
    return COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


def styles(labels: Sequence[str], families: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every label: those of its sampler, further labels of one sampler with other markers.

    Args:
        labels: in order.
        families: label -> the sampler's name.
    """
    found: dict[str, tuple[str, str]] = {}
    for label in labels:
        colour, marker = look(families.get(label, label))
        earlier = sum(families.get(other, other) == families.get(label, label) for other in found)
        found[label] = colour, MARKERS[(MARKERS.index(marker) + earlier) % len(MARKERS)]
    return found
