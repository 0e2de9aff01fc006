"""Tuned settings per task, as data: what ``sampler="diffpir"`` means for a mask and for a blur.

A row applies where its sampler is asked for by name, the operator names one of its tasks (`LinearOperator.task`) and the
noise is as stated; what the caller passes wins over it. `Solution.settings` shows what was used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings of one sampler for some tasks.

    Attributes:
        sampler: its name.
        tasks: of operators; empty for all.
        noisy: True for sigma_y > 0, False for sigma_y = 0, None for both.
        settings: values of the sampler's fields.
        source: where they come from.
    """

    sampler: str
    tasks: tuple[str, ...]
    noisy: bool | None
    settings: dict[str, Any] = field(default_factory=dict)
    source: str = ""


# Lambdas are a quarter of the authors', whose sigma is on a scale of [0, 1] for images in [-1, 1].
PRESETS: tuple[Preset, ...] = (
    Preset("diffpir", ("mask",), False, {"steps": 20, "lambda_": 0.25, "zeta": 1.0}, "DiffPIR, inpainting script"),
    Preset("diffpir", ("mask",), True, {"lambda_": 0.25, "zeta": 1.0}, "DiffPIR, inpainting script"),
    Preset("diffpir", ("super_resolution",), None, {"lambda_": 1.5, "zeta": 0.25}, "DiffPIR, super-resolution script"),
    Preset("diffpir", ("blur",), None, {"lambda_": 1.75, "zeta": 0.3}, "DiffPIR, deblurring script"),
    Preset("dps", ("mask",), None, {"norm": "known"}, "ours: a mask's unknown pixels are not read"),
    Preset("dps", ("super_resolution", "blur"), None, {"scale": 0.3}, "DPS, appendix D"),
    Preset("ddrm", (), False, {"paste_known": True}, "ours: ends with A x = y"),
    Preset("pigdm", ("mask",), False, {"project": True}, "the code of PiGDM's group, for masks"),
)


def preset(sampler: str, task: str, noisy: bool) -> dict[str, Any]:
    """The settings that the table holds for this task; an empty dict where it holds none."""
    found: dict[str, Any] = {}
    for row in PRESETS:
        if row.sampler == sampler and (not row.tasks or task in row.tasks) and row.noisy in (None, noisy):
            found.update(row.settings)
    return found
