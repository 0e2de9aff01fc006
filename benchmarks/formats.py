#!/usr/bin/env python3
"""How exactly files and networks of other projects are taken over: output and gradient against an independent computation.

    python benchmarks/formats.py --out docs/data

Files: small ones in every layout, written and computed a second time in ``tests/layouts.py`` from the names and shapes of the
layout alone, loaded by `load_backbone` in float32. Networks in memory: small ones with the habits of published code
(``tests/test_own_network.py``), wrapped as modules, against the same module called as a plain function. A difference is the
largest one over the largest value; the gradient is that of the sum of squares of the output by the noisy image.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff import InvdiffWarning, NetworkBackbone
from invdiff.backbones import EDMBackbone
from invdiff.files import atomic_write
from invdiff.markdown import markdown_table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

HABITS = {
    "MakesItsOwnTensors": "adds the time in float32",
    "TimeThroughALinear": "time in float32 through a linear layer",
    "ChecksPointsOverItsParameters": "checkpoints over its parameters (guided-diffusion, LDM)",
    "ChecksPointsInFloat32": "the same, and a time in float32",
    "HasAFunctionOfItsOwn": "an autograd.Function of its own",
    "WritesToItsInput": "writes to its input",
    "BeginsWithAnActivationInPlace": "begins with an activation in place",
    "AssertsItsType": "EDM's preconditioning, asserts its data type",
    "WrapsANoisePredictor": "k-diffusion's wrapper around a noise predictor",
    "NormalisesItsWeights": "EDM2's weights, normalised at every call",
}


def files() -> list[dict[str, Any]]:
    """One row for every case of ``tests/layouts.py``."""
    from layouts import CASES

    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            output, gradient = case.compare(Path(folder))
        rows.append({"what": case.layout, "run": case.variant, "output": output, "gradient": gradient})
        print(f"  {case}: {output:.1e} {gradient:.1e}", flush=True)
    return rows


def networks() -> list[dict[str, Any]]:
    """One row for every network of ``tests/test_own_network.py``, in float32."""
    from test_own_network import DENOISERS, NETWORKS, SHAPE

    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    rows = []
    for kind in [*NETWORKS, *DENOISERS]:
        torch.manual_seed(0)
        net: Any = kind()
        make: Any = EDMBackbone if kind in DENOISERS else NetworkBackbone
        module = make(net, image_shape=SHAPE, precision="float32")
        function = make(lambda *inputs, net=net: net(*inputs), image_shape=SHAPE)
        module.predict(x, 500)  # a sampler without a gradient has used it before
        output, gradient = (_difference(a, b) for a, b in zip(_both(module, x), _both(function, x), strict=True))
        name = make.__name__
        rows.append({"what": f"`{name}`", "run": HABITS[kind.__name__], "output": output, "gradient": gradient})
        print(f"  {kind.__name__}: {output:.1e} {gradient:.1e}", flush=True)
    return rows


def _both(backbone: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The clean image at time 500, and the gradient of the sum of its squares."""
    image = x.clone().requires_grad_()
    out = backbone.predict(image, 500).x0
    (gradient,) = torch.autograd.grad((out**2).sum(), image)
    return out.detach(), gradient


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def write(out: Path) -> list[dict[str, Any]]:
    """Measure and write ``formats.md`` and ``formats.json`` to the folder `out`."""
    warnings.simplefilter("ignore", InvdiffWarning)
    rows = files() + networks()
    table = markdown_table(
        ["format or network", "what was run", "largest difference, output", "gradient"],
        [[r["what"], r["run"], f"{r['output']:.1e}", f"{r['gradient']:.1e}"] for r in rows],
        "llrr",
    )
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "formats.md") as temporary:
        temporary.write_text(table.rstrip() + "\n", encoding="utf-8")
    with atomic_write(out / "formats.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("formats"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    write(given.out)


if __name__ == "__main__":
    main()
