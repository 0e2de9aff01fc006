"""A corpus of wrong inputs: every public argument times odd values, every kind of file, words of the command line.

Each is refused by an `InvdiffError` that names the argument (on the command line: by one line and a non-zero exit status),
before any network call, and soon; those that are legal after all are accepted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import os
import pickle
import re
import signal
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from wrong_inputs import Case, Odd, odd_cases

import invdiff as iv
from invdiff.images import save_grid
from invdiff.operators.masks import mask_names
from invdiff.samplers import sampler_class, sampler_names
from invdiff.solution import Frame

SECONDS = 10
"""After this a case counts as hanging; the slowest takes a fraction of a second."""


class Asked(Exception):
    """The network was called."""


class Untouched(iv.Backbone):
    """A backbone that tells when it is asked."""

    schedule = iv.NoiseSchedule.linear()
    image_shape = (3, 16, 16)
    name = "untouched"

    def predict(self, x_t, t):
        raise Asked


HALF = iv.Mask(iv.make_mask("half", 16))
GREY = torch.full((1, 3, 16, 16), 0.5)


def solve(**arguments: Any) -> Any:
    return iv.solve(
        **{"operator": HALF, "y": GREY, "sampler": "ddnm", "backbone": Untouched(), "steps": 5, **arguments}
    )


@contextlib.contextmanager
def soon() -> Iterator[None]:
    """An alarm that turns a hang into a failure."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- solve and sample -------------------------------------------------------------------------------------------


def real(low: float | None = None, high: float | None = None) -> Callable[[Odd], bool]:
    return lambda odd: odd.passes_for("real", low, high)


def whole(low: float | None = None, high: float | None = None) -> Callable[[Odd], bool]:
    return lambda odd: odd.passes_for("whole", low, high)


NUMBERS = {"minus-one", "zero", "1.7", "2.0", "10**30", "10**400", "1e300", "nan", "inf", "minus-inf"}  # as a text


def maybe(valid: Callable[[Odd], bool]) -> Callable[[Odd], bool]:
    return lambda odd: odd.name == "None" or valid(odd)


def flag(odd: Odd) -> bool:
    return odd.kind == "flag"


def of_solve() -> list[Case]:
    valid: dict[str, Any] = {
        "operator": (),
        "y": (),
        "sampler": (),
        "backbone": (),
        "sigma_y": real(0, 5e5),
        "preset": ("None",),
        "steps": maybe(whole(1, 1000)),
        "n_samples": whole(1, 10**6),
        "seed": whole(-(2**63), 2**63 - 1),
        "noise": ("None", "type", "error"),
        "x_init": ("None",),
        "value_range": (),
        "device": ("None",),
        "precision": ("None",),
        "batch_size": maybe(whole(1)),
        "path": ("None",),
        "region": (),
        "coarse_to_fine": lambda odd: flag(odd) or odd.passes_for("whole", 0, 8),
        "guidance": ("None", "empty-list", "empty-tuple", "type"),
        "progress": maybe(flag),
        "callback": ("None", "type"),
        "keep_trajectory": lambda odd: flag(odd) or odd.passes_for("whole", 0),
        "eta": real(0, 1),
    }
    assert set(valid) >= set(inspect.signature(iv.solve).parameters) - {"sampler_options"}
    skip = {
        "backbone": ("None",),
        "noise": ("type", "error"),
        "guidance": ("type",),
        "path": ("type",),
        "value_range": ("array-of-two", "tensor-of-two"),
    }
    says = {"x_init": "x_init|masked", "y": r"\by\b", "steps": "steps", "sigma_y": "sigma_y|y ranges"}
    cases = []
    for name, accepted in valid.items():
        call = lambda value, name=name: solve(**{name: value})  # noqa: E731
        cases += odd_cases("solve", name, call, valid=accepted, skip=skip.get(name, ()), says=says.get(name, ""))
    return cases


def of_y() -> list[Case]:
    """Measurements of a right shape whose numbers, types or layouts are wrong, or only look so."""
    fine = np.full((3, 16, 16), 0.5)
    hole = np.where(np.arange(16) < 8, 0.5, np.nan) * np.ones((3, 16, 16))
    says = r"\by\b"
    wrong: dict[str, Any] = {
        "nan": np.where(np.eye(16) > 0, np.nan, fine),
        "infinite": np.full((3, 16, 16), np.inf),
        "huge": np.full((3, 16, 16), 1e300),
        "int32": fine.astype(np.int32),
        "int64 tensor": torch.zeros(3, 16, 16, dtype=torch.long),
        "bool": np.zeros((3, 16, 16), bool),
        "bool tensor": torch.zeros(3, 16, 16, dtype=torch.bool),
        "complex": fine.astype(complex),
        "words": np.full((3, 16, 16), "a"),
        "objects": np.full((3, 16, 16), None),
        "times": np.zeros((3, 16, 16), "datetime64[s]"),
        "records": np.zeros((3, 16, 16), [("a", float)]),
        "masked": np.ma.masked_array(fine, np.eye(16) * np.ones((3, 1, 1)) > 0),
        "sparse": torch.zeros(48, 16).to_sparse(),
        "meta": torch.zeros(3, 16, 16, device="meta"),
        "quantised": torch.quantize_per_tensor(torch.zeros(3, 16, 16), 0.1, 0, torch.quint8),
        "other size": np.zeros((3, 8, 8)),
        "other channels": np.zeros((2, 16, 16)),
        "five axes": np.zeros((1, 1, 3, 16, 16)),
        "no axes": np.array(0.5),
        "no image": np.zeros((0, 3, 16, 16)),
        "list of lists": fine.tolist(),
        "list of two kinds": [fine, (fine * 255).astype(np.uint8)],
        "list with None": [fine, None],
        "grey levels as floats": fine * 255,
    }
    right: dict[str, Any] = {
        "negative strides": fine[:, ::-1, ::-1],
        "big-endian": fine.astype(">f4"),
        "long double": fine.astype(np.longdouble),
        "half": fine.astype(np.float16),
        "bfloat16": torch.full((3, 16, 16), 0.5, dtype=torch.bfloat16),
        "not contiguous": torch.full((16, 16, 3), 0.5).movedim(-1, 0),
        "with a gradient": torch.full((3, 16, 16), 0.5, requires_grad=True),
        "expanded": torch.tensor(0.5).expand(3, 16, 16),
        "channels last": np.full((16, 16, 3), 0.5),
        "read-only": np.broadcast_to(np.float64(0.5), (3, 16, 16)),
        "uint8": np.full((16, 16, 3), 100, np.uint8),
        "nan where nothing is read": hole,
        "list of arrays": [fine, fine],
    }
    cases = [Case(f"solve(y: {name})", lambda y=y: solve(y=y), says) for name, y in wrong.items()]
    return cases + [Case(f"solve(y: {name})", lambda y=y: solve(y=y), None) for name, y in right.items()]


def of_solve_by_hand() -> list[Case]:
    loss = lambda x0: x0.square().sum()  # noqa: E731
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"n_samples": 10**10}, "n_samples"),
        ({"sampler": "repaint", "steps": 20, "jump_n_sample": 10**9}, "jump_n_sample"),
        ({"sampler": "repaint", "steps": 10**8}, "steps"),
        ({"sampler": iv.RePaint(10**8)}, "steps"),
        ({"sampler": "diffpir", "inner_iterations": 10**9}, "inner_iterations"),
        ({"path": "jumps", "jump_length": 2, "jump_n_sample": 10**9}, "jump_n_sample"),
        ({"path": "travel", "travel_length": 1, "travel_repeat": 10**9}, "travel_repeat|jump_n_sample"),
        ({"path": "jumps", "jump_length": "a"}, "jump_length"),
        ({"path": "jumps", "jump_length": 1.5}, "jump_length"),
        ({"path": [1.7, -1]}, "path"),
        ({"path": ["a", -1]}, "path"),
        ({"path": [4, 3, 2]}, "path"),
        ({"path": [99, -1]}, "path"),
        ({"path": [3, 3, -1]}, "path"),
        ({"path": [-1]}, "path"),
        ({"path": lambda n: 5}, "path"),
        ({"path": lambda n: None}, "path"),
        ({"path": lambda n: iter(int, 1)}, "path"),
        ({"seed": [1, 2]}, "seed"),
        ({"seed": [1.5]}, "seed"),
        ({"seed": [True]}, "seed"),
        ({"seed": np.array([0.5])}, "seed"),
        ({"seed": 10**5000}, "seed"),
        ({"value_range": (1, 0)}, "value_range"),
        ({"value_range": (0, 0)}, "value_range"),
        ({"value_range": "01"}, "value_range"),
        ({"value_range": (0, float("nan"))}, "value_range"),
        ({"value_range": (-1e308, 1e308)}, "value_range"),
        ({"value_range": (0, 1e-300, 3)}, "value_range"),
        ({"value_range": {0: 1, 1: 2}}, "value_range"),
        ({"guidance": [(loss, "a")]}, "guidance"),
        ({"guidance": (loss, float("nan"))}, "guidance"),
        ({"guidance": [(loss, 1, 2)]}, "guidance"),
        ({"x_init": torch.full((1, 3, 16, 16), float("nan"))}, "x_init"),
        ({"x_init": torch.zeros(2, 3, 16, 16)}, "x_init"),
        ({"x_init": torch.zeros(1, 3, 16, 16).to_sparse()}, "x_init"),
        ({"noise": lambda shape: None}, "noise"),
        ({"noise": lambda shape: torch.zeros(1)}, "noise"),
        ({"device": "gpu"}, "device"),
        ({"device": "cuda:77"}, "device"),
        ({"device": "meta"}, "device"),
        ({"device": "xpu"}, "device"),
        ({"precision": "float64"}, "precision"),
        ({"precision": torch.float16}, "precision"),
        ({"sampler": iv.Sampler}, "sampler"),
        ({"sampler": iv.Mask}, "sampler"),
        ({"sampler": "DDNN"}, "Did you mean"),
        ({"etta": 1}, "etta.*Did you mean 'eta'"),
        ({"backbone": torch.nn.Identity()}, "backbone"),
        ({"operator": iv.Mask}, "operator"),
        ({"operator": iv.FunctionOperator(lambda x: x**2)}, "operator must be linear"),
        ({"operator": iv.FunctionOperator(lambda x: x.abs())}, "operator must be linear"),
        ({"operator": iv.FunctionOperator(lambda x: x + 1)}, "operator must be linear"),
        ({"operator": iv.FunctionOperator(lambda x: x + torch.randn(x.shape))}, "operator must always"),
        ({"operator": iv.FunctionOperator(lambda x: x.flip(0))}, "operator must act"),
        ({"operator": iv.FunctionOperator(lambda x: None)}, "forward"),
        ({"operator": iv.FunctionOperator(lambda x: x.numpy().tolist())}, "forward"),
        ({"operator": iv.FunctionOperator(lambda x: 1 / 0)}, "forward"),
        ({"operator": iv.NonlinearOperator(lambda x: None, lambda y: y)}, "forward"),
        ({"operator": iv.NonlinearOperator(lambda x: x, lambda y: None)}, "pinv"),
        ({"operator": iv.NonlinearOperator(lambda x: x.round(), lambda y: y), "sigma_y": 0.1}, "sigma_y"),
        ({"operator": iv.Mask(torch.ones(2, 1, 16, 16)), "y": torch.zeros(3, 3, 16, 16)}, "operator"),
        ({"operator": iv.SuperResolution(64)}, r"\by\b"),
        ({"operator": iv.Blur(iv.uniform_kernel(17))}, "kernel"),
        ({"operator": iv.MatrixOperator(torch.eye(3))}, "image_shape"),
        ({"operator": iv.Stack([iv.Identity(), iv.SuperResolution(2)])}, r"\by\b"),
    ]
    right: list[dict[str, Any]] = [
        {"seed": np.array(3)},
        {"seed": np.int64(3)},
        {"seed": torch.tensor(3)},
        {"seed": range(1)},
        {"seed": -5},
        {"seed": np.array([3])},
        {"batch_size": 10**30},
        {"steps": 1},
        {"value_range": [0, 255], "y": GREY * 255},
        {"value_range": np.array([0, 1])},
        {"path": [4, 2, -1]},
        {"path": np.array([4, 2, -1])},
        {"path": range(4, -2, -1)},
        {"sampler": iv.DDNM},
        {"sampler": "DDNM_plus"},
        {"keep_trajectory": 2},
        {"guidance": [loss, 3]},
    ]

    def words(arguments: dict[str, Any]) -> str:
        return ", ".join(f"{k}={_short(v)}" for k, v in arguments.items())

    cases = [Case(f"solve({words(a)})", lambda a=a: solve(**a), says) for a, says in wrong]
    return cases + [Case(f"solve({words(a)})", lambda a=a: solve(**a), None) for a in right]


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "10**5000"
    return re.sub(r" at 0x\w+|\s+", " ", text)[:60]


def of_sample() -> list[Case]:
    def draw(**options: Any) -> Any:
        return iv.sample(**{"backbone": Untouched(), "n": 1, "steps": 4, **options})

    cases = []
    for name, valid in {
        "n": whole(1, 10**6),
        "steps": whole(1, 1000),
        "eta": real(0, 1),
        "seed": whole(-(2**63), 2**63 - 1),
        "clip": flag,
    }.items():
        cases += odd_cases("sample", name, lambda value, name=name: draw(**{name: value}), valid=valid)
    for options in ({"operator": HALF}, {"y": GREY}, {"n_samples": 2}, {"sigma_y": 1.0}, {"stepps": 3}):
        cases.append(Case(f"sample({next(iter(options))})", lambda o=options: draw(**o), next(iter(options))))
    return cases


# ---- samplers, paths, guidance, schedules -----------------------------------------------------------------------


def of_samplers() -> list[Case]:
    """Every field of every sampler: when one is made, and through `solve` where it is refused."""
    cases = []
    for name in (n for n in sampler_names() if sampler_class(n).__module__.startswith("invdiff.samplers.")):
        cls = sampler_class(name)
        for field in dataclasses.fields(cls):
            meta, default = field.metadata, field.default
            if not isinstance(default, bool | int | float | str):
                continue
            kind = {bool: "flag", int: "whole", float: "real", str: "word"}[type(default)]
            valid = (
                (lambda odd: False)
                if kind == "word"
                else (lambda odd, kind=kind, meta=meta: odd.passes_for(kind, meta["low"], meta["high"]))
            )
            make = lambda value, cls=cls, name=field.name: cls(**{name: value})  # noqa: E731
            cases += odd_cases(cls.__name__, field.name, make, valid=valid)
            through = lambda value, cls=cls, name=field.name: solve(sampler=cls, **{name: value})  # noqa: E731
            refused = [c for c in odd_cases(f"solve {name}", field.name, through, valid=valid) if c.says is not None]
            cases += [c for c in refused if not (field.name == "steps" and "=None" in c.name)][::6]
    return cases


def of_guidance_and_schedules() -> list[Case]:
    loss = lambda x0: x0.sum()  # noqa: E731
    schedule, linear = iv.NoiseSchedule.linear(), iv.NoiseSchedule.linear
    inside = lambda odd: odd.passes_for("real", 1e-9, 1 - 1e-9)  # noqa: E731
    cases = odd_cases("Guidance", "weight", lambda v: iv.Guidance(loss, v), valid=real(-1e9, 1e9))
    cases += odd_cases("Guidance", "on", lambda v: iv.Guidance(loss, 1.0, v))
    cases += odd_cases("Guidance", "loss", iv.Guidance, valid=("type",))
    cases += odd_cases("total_variation", "weight", iv.total_variation, valid=real(-1e9, 1e9))
    cases += odd_cases("NoiseSchedule.linear", "T", linear, valid=whole(1, 10**6))
    cases += odd_cases("NoiseSchedule.cosine", "T", iv.NoiseSchedule.cosine, valid=whole(2, 10**6))
    cases += odd_cases("NoiseSchedule.scaled_linear", "T", iv.NoiseSchedule.scaled_linear, valid=whole(1, 10**6))
    says = "beta_start|betas"
    cases += odd_cases("NoiseSchedule.linear", "beta_start", lambda v: linear(10, v), valid=inside, says=says)
    cases += odd_cases(
        "NoiseSchedule.linear", "beta_end", lambda v: linear(10, 1e-4, v), valid=inside, says="beta_end|betas"
    )
    cases += odd_cases("NoiseSchedule.cosine", "offset", lambda v: iv.NoiseSchedule.cosine(10, v), valid=real(0, 1))
    cases += odd_cases(
        "NoiseSchedule.cosine", "max_beta", lambda v: iv.NoiseSchedule.cosine(10, 0.008, v), valid=inside
    )
    cases += odd_cases("NoiseSchedule.from_betas", "betas", iv.NoiseSchedule.from_betas)
    cases += odd_cases("NoiseSchedule.respaced", "steps", schedule.respaced, valid=whole(1, 1000))
    cases += odd_cases("NoiseSchedule.respaced", "spacing", lambda v: schedule.respaced(5, v))
    cases += odd_cases("NoiseSchedule.nearest", "alpha_bar", schedule.nearest, valid=real(0, 1))
    return cases


# ---- operators, masks, kernels ----------------------------------------------------------------------------------


def of_operators() -> list[Case]:
    identity = lambda x: x  # noqa: E731
    x = torch.zeros(2, 3, 8, 8)
    cases = odd_cases("Mask", "mask", iv.Mask, skip=("path", "word", "number-in-a-word", "empty-word"))
    cases += odd_cases("Mask", "mask", iv.Mask, says="mask")[3:6]
    cases += odd_cases("SuperResolution", "scale", iv.SuperResolution, valid=whole(1, 4096))
    cases += odd_cases("SuperResolution", "kernel", lambda v: iv.SuperResolution(2, v))
    cases += odd_cases("Blur", "kernel", iv.Blur)
    cases += odd_cases("Blur", "threshold", lambda v: iv.Blur(np.ones((3, 3)), v), valid=real(0, 0.999999))
    cases += odd_cases("Colorization", "weights", iv.Colorization)
    cases += odd_cases("WalshHadamard", "ratio", iv.WalshHadamard, valid=real(1e-9, 1))
    cases += odd_cases("WalshHadamard", "seed", lambda v: iv.WalshHadamard(0.5, v), valid=whole(0))
    cases += odd_cases("Fourier", "mask", iv.Fourier, skip=("path", "word", "number-in-a-word", "empty-word"))
    cases += odd_cases("MatrixOperator", "matrix", iv.MatrixOperator)
    cases += odd_cases("FunctionOperator", "forward", iv.FunctionOperator, valid=("type",))
    cases += odd_cases(
        "FunctionOperator", "adjoint", lambda v: iv.FunctionOperator(identity, v), valid=("None", "type")
    )
    for name, valid in {
        "tolerance": real(1e-300, 0.1),
        "max_iterations": whole(1, 10_000),
        "image_shape": ("None",),
        "name": lambda odd: odd.name == "None" or odd.kind == "word",
    }.items():
        make = lambda v, name=name: iv.FunctionOperator(identity, **{name: v})  # noqa: E731
        cases += odd_cases("FunctionOperator", name, make, valid=valid)
    cases += odd_cases("NonlinearOperator", "forward", lambda v: iv.NonlinearOperator(v, identity), valid=("type",))
    cases += odd_cases("NonlinearOperator", "pinv", lambda v: iv.NonlinearOperator(identity, v), valid=("type",))
    cases += odd_cases("Stack", "operators", iv.Stack, says="operators?")
    cases += odd_cases("Identity", "x", iv.Identity())
    cases += odd_cases("bind", "image_shape", iv.Identity().bind)
    cases += odd_cases("measure", "sigma_y", lambda v: iv.Identity().measure(x, v), valid=real(0))
    cases += odd_cases("measure", "seed", lambda v: iv.Identity().measure(x, 0.1, v), valid=whole(0))
    more: dict[str, tuple[Callable[[], Any], str | None]] = {
        "SuperResolution([2, 2])": (lambda: iv.SuperResolution([2, 2]), "scale"),
        "Blur(NaN)": (lambda: iv.Blur(np.full((3, 3), np.nan)), "kernel"),
        "Blur(1e30)": (lambda: iv.Blur([[1e30]]), "kernel"),
        "Blur(1e-30)": (lambda: iv.Blur([[1e-30]]), "kernel"),
        "Blur(zero)": (lambda: iv.Blur(np.zeros((3, 3))), "kernel"),
        "Blur(words)": (lambda: iv.Blur([["1", "2"]]), "kernel"),
        "Blur(masked)": (lambda: iv.Blur(np.ma.masked_array(np.ones((3, 3)), np.eye(3))), "kernel"),
        "Blur(bfloat16)": (lambda: iv.Blur(torch.ones(3, 3, dtype=torch.bfloat16)), None),
        "Blur(gradient)": (lambda: iv.Blur(torch.ones(3, 3, requires_grad=True)), None),
        "Colorization(1e200)": (lambda: iv.Colorization((1e200, 1, 1)), "weights"),
        "Colorization(nan)": (lambda: iv.Colorization((float("nan"), 1, 1)), "weights"),
        "Colorization(two)": (lambda: iv.Colorization((1, 1)), "weights"),
        "Colorization(zero)": (lambda: iv.Colorization((0, 0, 0)), "weights"),
        "Colorization(generator)": (lambda: iv.Colorization(w for w in (1, 1, 1)), "weights"),
        "Mask(big-endian)": (lambda: iv.Mask(np.ones((4, 4), ">f8")), None),
        "Mask(negative strides)": (lambda: iv.Mask(np.eye(4)[::-1]), None),
        "Mask(sparse)": (lambda: iv.Mask(torch.eye(4).to_sparse()), "mask"),
        "Mask(meta)": (lambda: iv.Mask(torch.ones(4, 4, device="meta")), "mask"),
        "Mask(soft)": (lambda: iv.Mask(torch.full((4, 4), 0.5)), "mask"),
        "Mask(channels last)": (lambda: iv.Mask(torch.ones(8, 8, 3)), "mask"),
        "Mask(uint16)": (lambda: iv.Mask(np.ones((4, 4), np.uint16)), None),
        "MatrixOperator(inf)": (lambda: iv.MatrixOperator([[float("inf")]]), "matrix"),
        "MatrixOperator(ragged)": (lambda: iv.MatrixOperator([[1, 2], [3]]), "matrix"),
        "A / 0": (lambda: iv.Identity() / 0, "factor"),
        "nan * A": (lambda: float("nan") * iv.Identity(), "factor"),
        "A.bind((3, 10**9, 10**9))": (lambda: iv.Identity().bind((3, 10**9, 10**9)), "image_shape"),
        "measure: seeds": (lambda: iv.Identity().measure(x, 0.1, [1, 2, 3]), "seed"),
        "measure: seed of each": (lambda: iv.Identity().measure(x, 0.1, [1, 2]), None),
        "make_operator(blurr)": (lambda: iv.make_operator("blurr", (3, 8, 8)), "blur"),
        "make_operator(option)": (lambda: iv.make_operator("super_resolution", (3, 8, 8), skale=2), "skale"),
        "make_operator(value)": (lambda: iv.make_operator("super_resolution", (3, 8, 8), scale="a"), "scale"),
    }
    return cases + [Case(name, call, says) for name, (call, says) in more.items()]


def of_masks_and_kernels() -> list[Case]:
    cases = odd_cases("make_mask", "name", lambda v: iv.make_mask(v, 8), says="mask|name")
    for name in mask_names():
        make = lambda size, name=name: iv.make_mask(name, size)  # noqa: E731
        cases += odd_cases(f"make_mask {name}", "size", make, valid=whole(1, 2**14))
        seeded = lambda seed, name=name: iv.make_mask(name, 8, seed=seed)  # noqa: E731
        cases += odd_cases(f"make_mask {name}", "seed", seeded, valid=whole(0))
    for name, option, valid in (
        ("box", "fraction", real(0, 1)),
        ("random_pixels", "fraction_known", real(0, 1)),
        ("super_resolve", "scale", whole(1)),
        ("scan_lines", "period", real(1e-9, 1e6)),
        ("scan_lines", "widest", real(0, 1)),
        ("scan_lines", "slope", real(-1e6, 1e6)),
        ("slc_off", "swath", maybe(real(1, 1e6))),
        ("slc_off", "off_nadir", real(-1e6, 1e6)),
        ("slc_off", "tilt", real(-1e3, 1e3)),
        ("text", "lines", maybe(whole(1, 16))),
        ("text", "string", lambda odd: odd.name in NUMBERS or (odd.kind == "word" and odd.name != "empty-word")),
    ):
        call = lambda v, name=name, option=option: iv.make_mask(name, 16, **{option: v})  # noqa: E731
        cases += odd_cases(f"make_mask {name}", option, call, valid=valid)
    cases += odd_cases("gaussian_kernel", "size", lambda v: iv.gaussian_kernel(v, 1.0), valid=maybe(whole(1, 4096)))
    cases += odd_cases("gaussian_kernel", "sigma", lambda v: iv.gaussian_kernel(3, v), valid=real(1e-3, 1e6))
    cases += odd_cases("uniform_kernel", "size", iv.uniform_kernel, valid=whole(1, 4096))
    cases += odd_cases("motion_kernel", "size", iv.motion_kernel, valid=whole(1, 4096))
    cases += odd_cases("motion_kernel", "intensity", lambda v: iv.motion_kernel(3, v), valid=real(0, 1))
    cases += odd_cases("motion_kernel", "angle", lambda v: iv.motion_kernel(3, 0.5, v), valid=maybe(real(-1e6, 1e6)))
    cases += odd_cases("motion_kernel", "seed", lambda v: iv.motion_kernel(3, seed=v), valid=whole(0))
    cases += odd_cases("fourier_mask", "shape", iv.fourier_mask, valid=whole(1, 2**14))
    cases += odd_cases("fourier_mask", "acceleration", lambda v: iv.fourier_mask(8, v), valid=real(1))
    cases += odd_cases("fourier_mask", "center_fraction", lambda v: iv.fourier_mask(8, 4, v), valid=real(0, 1))
    cases += odd_cases("fourier_mask", "seed", lambda v: iv.fourier_mask(8, seed=v), valid=whole(0))
    return cases


# ---- backbones --------------------------------------------------------------------------------------------------


def of_backbones() -> list[Case]:
    def network(**arguments: Any) -> Any:
        return iv.NetworkBackbone(**{"network": lambda x, t: x, "image_shape": (3, 16, 16), **arguments})

    cases = []
    for name, valid in {
        "network": ("type",),
        "schedule": ("None",),
        "image_shape": (),
        "prediction": (),
        "learned_variance": flag,
        "precision": (),
        "compile": flag,
        "device": ("None",),
        "checkpointing": flag,
        "multiple_of": whole(1, 4096),
        "field_of_view": maybe(whole(0)),
        "engine": (),
    }.items():
        cases += odd_cases("NetworkBackbone", name, lambda v, name=name: network(**{name: v}), valid=valid)
    cases += odd_cases(
        "load_backbone",
        "name_or_path",
        iv.load_backbone,
        says="backbone|path|name",
        skip=("None", "path"),
    )
    cases += odd_cases("load_backbone", "precision", lambda v: iv.load_backbone("cats64", precision=v))
    cases += odd_cases("load_backbone", "device", lambda v: iv.load_backbone("cats64", device=v), valid=("None",))
    cases.append(Case("load_backbone(foo=1)", lambda: iv.load_backbone("cats64", foo=1), "foo"))
    ones = torch.ones(1, 2, 2)
    positive = real(0, 1e30)
    cases += odd_cases("GaussianBackbone", "mean", lambda v: iv.GaussianBackbone(v, 1.0), says="mean")
    cases += odd_cases("GaussianBackbone", "covariance", lambda v: iv.GaussianBackbone(ones, v), valid=positive)
    for name, answer in {
        "None": None,
        "a number": 1.0,
        "a word": "x",
        "a dictionary": {"a": 1},
        "an array": np.zeros((1, 3, 16, 16), np.float32),
        "an empty tuple": (),
        "another shape": torch.zeros(1, 3, 8, 8),
        "whole numbers": torch.zeros(1, 3, 16, 16, dtype=torch.long),
    }.items():
        backbone = iv.NetworkBackbone(lambda x, t, answer=answer: answer, image_shape=(3, 16, 16))
        says = None if name == "whole numbers" else "network"
        cases.append(Case(f"a network that returns {name}", lambda b=backbone: solve(backbone=b), says))
    return cases


# ---- files ------------------------------------------------------------------------------------------------------


def make_files(folder: Path) -> dict[str, str]:
    """Files of every kind that no picture or network can be read from: name -> path."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    picture.save(folder / "whole.png")
    content = (folder / "whole.png").read_bytes()
    huge = bytearray(content)
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    contents: dict[str, bytes] = {
        "empty": b"",
        "text": b"not a picture\n",
        "cut": content[:300],
        "header-alone": content[:40],
        "huge": bytes(huge),
        "pickle": pickle.dumps({"a": 1}),
        "code": b"cos\nsystem\n(S'echo no'\ntR.",
        "zip": b"PK\x03\x04" + bytes(40),
        "json": b"[]",
        "zeros": bytes(1000),
        "random": np.random.default_rng(1).bytes(1000),
    }
    files = {}
    for name, data in contents.items():
        for ending in (".png", ".pt", ".safetensors", ".ckpt", ".pkl"):
            (folder / f"{name}{ending}").write_bytes(data)
            files[f"{name}{ending}"] = str(folder / f"{name}{ending}")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("L").convert("F").save(folder / "floats.tif")
    picture.resize((8, 8)).save(folder / "small.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "gone.png").symlink_to(folder / "nowhere")
    for name in ("cmyk.jpg", "floats.tif", "small.png", "folder.png", "pipe.png", "circle.png", "gone.png"):
        files[name] = str(folder / name)
    return files | {
        "missing": str(folder / "missing.png"),
        "long": str(folder / ("n" * 300 + ".png")),
        "nul": str(folder / "n\0.png"),
        "device": "/dev/zero",
        "no name": "",
    }


FILES = {
    "solve": lambda path: solve(y=path),
    "solve, as a path": lambda path: solve(y=Path(path)),
    "Mask": iv.Mask,
    "load_backbone": iv.load_backbone,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("reader", FILES)
def test_no_file_of_another_kind_is_read(reader, files):
    for name, path in files.items():
        says = {"Mask": "mask", "load_backbone": ""}.get(reader, r"\by\b")
        check(Case(f"{reader}: {name}", lambda path=path: FILES[reader](path), says))


def test_no_impossible_place_is_written_to(tmp_path):
    """Nothing appears, nothing vanishes."""
    make_files(tmp_path)
    x = torch.rand(1, 3, 8, 8)
    frame = Frame(1, 0, x, x)
    answer = iv.Solution(x, 1, 0.0, [0], {"sampler": "ddnm"}, x, trajectory=[frame, frame])
    writers: dict[str, Callable[[Any], Any]] = {
        "save": answer.save,
        "animate": answer.animate,
        "save_grid": lambda path: save_grid(path, x),
    }
    places: list[Any] = [tmp_path, tmp_path / "no" / "a.png", tmp_path / "folder.png", tmp_path / "pipe.png"]
    places += [tmp_path / "circle.png" / "a.png", tmp_path / ("n" * 300 + ".png"), tmp_path / "n\0.png", "/dev/null"]
    places += [tmp_path / "text.png" / "a.png", "", None, 3, b"a.png", ["a.png"], tmp_path / "a.xyz", tmp_path / "a"]
    before = sorted(p.name for p in tmp_path.iterdir())
    for name, write in writers.items():
        for place in places:
            check(Case(f"{name}({place!r})", lambda w=write, p=place: w(p), "output"))
    for rate, seconds, scale in ((0, 6, 1), ("a", 6, 1), (10, -1, 1), (10, float("nan"), 1), (10, 6, 10**9)):
        options = {"rate": rate, "seconds": seconds, "scale": scale}
        check(
            Case(f"animate({options})", lambda o=options: answer.animate(tmp_path / "a.gif", **o), "rate|seconds|scale")
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == before


# ---- the command line -------------------------------------------------------------------------------------------

LONG = "n" * 300 + ".png"
CLEAN = ("solve", "photo.png", "--simulate", "-a")
PHOTO = ("solve", "photo.png", "--mask", "half", "--steps", "2", "-o", "out.png")
WORDS: list[tuple[str, ...]] = [
    *((*PHOTO, option, value) for option in ("--steps", "-n") for value in ("0", "-1", "1.5", "a", "", "99999999999999", "nan")),
    *((*PHOTO, "--seed", value) for value in ("1.5", "a", "", "1" * 30, "nan")),
    *((*PHOTO, "--sigma-y", value) for value in ("-1", "a", "", "nan", "inf", "1e300")),
    *((*PHOTO, "--device", value) for value in ("", "gpu", "xpu", "meta", "cuda:77", "1.5")),
    *((*PHOTO, "--precision", value) for value in ("", "float64", "half", "1")),
    *((*PHOTO, "--path", value) for value in ("", "jumpz", "5", "[1]")),
    *((*PHOTO, "--fit", value) for value in ("", "covr", "5")),
    *((*PHOTO, "-s", value) for value in ("", "ddnn", "5", "Sampler")),
    *((*PHOTO, "-a", value) for value in ("", "maks", "5", "matrix", "function")),
    *((*PHOTO, "--backbone", value) for value in ("", "cats46", "photo.png", ".", "/dev/zero", "no/such/folder")),
    *((*PHOTO, "-O", value) for value in ("", "eta", "eta=", "eta=a", "eta=nan", "eta=2", "=1", "etaa=1", "steps=3", "seed=1")),
    *((*PHOTO, "-A", value) for value in ("", "mask", "skale=2", "=1", "mask=nowhere.png")),
    *((*PHOTO, "-o", value) for value in ("", "no/such.png", ".", "a.xyz", "a", "/dev/null", LONG, "photo.png", "a.h5")),
    *((*PHOTO, "--figure", value) for value in ("", "no/such.png", ".", "a.npy", "a.gif", "out.png")),
    *((*PHOTO, "--animate", value) for value in ("", "no/such.gif", ".", "a.png", "a.npy")),
    *((*PHOTO, "--mask", value) for value in ("", "halve", "nowhere.png", ".", "text.txt", "/dev/zero", "photo.png")),
    *(("solve", value, "--mask", "half") for value in ("", "nowhere.png", ".", "text.txt", "/dev/zero", LONG)),
    *((*CLEAN, "super_resolution", "-A", f"scale={v}") for v in ("0", "a", "-1", "1.5", "nan", "9999999")),
    *((*CLEAN, "super_resolution", "-A", f"kernel={v}") for v in ("", "bix", "3")),
    *((*CLEAN, "colorization", "-A", f"weights={v}") for v in ("", "meen", "1,2", "nan,1,1", "0,0,0")),
    *((*CLEAN, "compressed_sensing", "-A", f"ratio={v}") for v in ("0", "2", "a", "nan", "-1")),
    *(("solve", "photo.png", "-a", a) for a in ("fourier", "compressed_sensing", "super_resolution")),
    *(("mask", value) for value in ("", "wied", "5", "../x")),
    *(("mask", "wide", "--size", value) for value in ("0", "-3", "big", "3x4x5", "1000000", "1" * 30)),
    *(("mask", "wide", "--size", value) for value in ("", "x", "4x", "1.5", "٣x٣x٣")),
    *(("mask", "wide", "-o", value) for value in ("no/such.png", ".", "a.xyz", "/dev/null", LONG)),
    *(("mask", "wide", "--seed", value) for value in ("-1", "a", "1.5")),
    *(("sample", "--steps", value) for value in ("0", "a", "9999")),
    *(("sample", "-n", value) for value in ("0", "-1", "a", "99999999999")),
    *(("sample", "--eta", value) for value in ("-1", "2", "a", "nan")),
    *(("sample", "-o", value) for value in ("no/such.png", ".", "a.xyz", "/dev/null")),
    *(("demo", "-o", value) for value in ("photo.png/x.png", "a.jpg", ".", LONG, "pipe.png")),
    *(("train", "--data", ".", "--out", value) for value in ("photo.png", "photo.png/x", "n" * 300)),
    *(("train", "--data", value, "--out", "new") for value in ("nowhere", "text.txt", "photo.png", "/dev/zero")),
    *(("train", "--data", ".", "--out", "new", "--size", value) for value in ("0", "a", "1000000", "-1", "1.5")),
    *(("train", "--data", ".", "--out", "new", "--channels", value) for value in ("0", "a", "1000000000", "", "64;128")),
    *(("train", "--data", ".", "--out", "new", "--lr", value) for value in ("a", "nan", "-1", "")),
    ("train",),
    ("train", "--data"),
    ("train", "--data", ".", "--out", "new", "--sizee", "3"),
    ("solve",),
    ("solve", "photo.png", "--stepps", "3"),
    ("solve", "photo.png", "photo.png"),
    ("nothing",),
    ("--nothing",),
    ("list", "nothing"),
    ("download", "nothing"),
    ("report", "nowhere"),
    ("report", "photo.png"),
    ("report", "."),
    ("compare", "nowhere", "nowhere"),
    ("score", "--truth", "nowhere", "--restored", "nowhere"),
    ("score", "--truth", "circle.png", "--restored", "circle.png"),
    ("merge", "nowhere", "--out", "new"),
    ("bench", "quik"),
]  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "photo.png")
    (folder / "text.txt").write_text("words\n")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.mark.parametrize("words", WORDS, ids=lambda words: " ".join(word[:20] for word in words))
def test_a_wrong_word_is_one_line_and_a_status(words, desk, monkeypatch, capsys):
    from invdiff.backbones import NetworkBackbone
    from invdiff.cli import main

    def asked(*_: Any) -> None:
        raise Asked

    monkeypatch.chdir(desk)
    monkeypatch.setattr(NetworkBackbone, "predict", asked)
    monkeypatch.setattr(sys, "argv", ["invdiff", *words])
    before = sorted(p.name for p in desk.rglob("*"))
    with soon(), pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert end.value.code == 2
    lines = [line for line in printed.err.splitlines() if not line.startswith("note:")]
    assert lines and lines[0].startswith("error:") and len(lines) == 1, printed.err
    assert "Traceback" not in printed.out + printed.err
    assert [n for n in sorted(p.name for p in desk.rglob("*")) if n != "new"] == [n for n in before if n != "new"]


# ---- the corpus -------------------------------------------------------------------------------------------------


def check(case: Case) -> None:
    """Refused by an `InvdiffError` that says what it has to, or accepted; in either case soon."""
    with warnings.catch_warnings(), soon():
        warnings.simplefilter("ignore")
        try:
            case.call()
            outcome = "accepted"
        except Asked:
            outcome = "accepted"
        except iv.InvdiffError as error:
            outcome = str(error)
        except Exception as error:
            raise AssertionError(f"{case.name}: {type(error).__name__}: {error}") from error
    if case.says is None:
        assert outcome == "accepted", f"{case.name} is legal, but: {outcome}"
    else:
        assert outcome != "accepted", f"{case.name} was accepted"
        assert re.search(case.says, outcome), f"{case.name}: the message does not say {case.says!r}: {outcome}"
        assert len(outcome) < 1500, f"{case.name}: {len(outcome)} characters"


GROUPS: dict[str, Callable[[], list[Case]]] = {
    "solve": of_solve,
    "y": of_y,
    "solve by hand": of_solve_by_hand,
    "sample": of_sample,
    "samplers": of_samplers,
    "guidance and schedules": of_guidance_and_schedules,
    "operators": of_operators,
    "masks and kernels": of_masks_and_kernels,
    "backbones": of_backbones,
}
for module in sorted(Path(__file__).parent.glob("wrong_inputs_*.py")):
    GROUPS[module.stem.removeprefix("wrong_inputs_")] = importlib.import_module(module.stem).cases


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """What is imported when first needed must not count as time of a case."""
    iv.load_backbone("cats64")


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_wrong_is_refused_by_name_and_what_is_right_is_not(group):
    failed = []
    for case in GROUPS[group]():
        try:
            check(case)
        except AssertionError as error:
            failed.append(str(error))
    assert not failed, f"{len(failed)} failed:\n" + "\n".join(failed[:60])


def test_the_corpus_is_large():
    refused = sum(case.says is not None for make in GROUPS.values() for case in make())
    assert refused + len(WORDS) > 2000
