#!/usr/bin/env python3
"""How exactly files and networks of other projects are taken over: output and gradient against an independent computation.

    python benchmarks/formats.py --out docs/data

Files: small ones in every layout, written and computed a second time in ``tests/layouts.py`` from the names and shapes of the
layout alone, loaded by `load_backbone` in float32. Networks in memory: small ones with the habits of published code
(``tests/test_own_network.py``), wrapped as modules, against the same module called as a plain function; then small ones made by the
published packages themselves, where these are installed: denoising-diffusion-pytorch, k-diffusion, torchcfm. A difference is the
largest one over the largest value; the gradient is that of the sum of squares of the output by the noisy image.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff import FlowBackbone, InvdiffWarning, NetworkBackbone, NoiseSchedule
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


# ---- networks of published packages -----------------------------------------------------------------------------


def lucidrains() -> tuple[Any, Any, dict[str, Any]]:
    from denoising_diffusion_pytorch import Unet

    return Unet(16, dim_mults=(1, 2), flash_attn=False), NetworkBackbone, {}


def k_diffusion_denoiser() -> tuple[Any, Any, dict[str, Any]]:
    from k_diffusion.layers import Denoiser
    from k_diffusion.models.image_v1 import ImageDenoiserModelV1

    inner = ImageDenoiserModelV1(3, 32, [1, 1], [32, 32], [False, True])
    return Denoiser(inner, sigma_data=0.5), EDMBackbone, {}


def k_diffusion_wrapper() -> tuple[Any, Any, dict[str, Any]]:
    from denoising_diffusion_pytorch import Unet
    from k_diffusion.external import DiscreteEpsDDPMDenoiser

    inner = Unet(16, dim_mults=(1, 2), flash_attn=False)
    levels = NoiseSchedule.linear(1000).alpha_bar[:-1].float()
    return DiscreteEpsDDPMDenoiser(inner, levels, quantize=False), EDMBackbone, {}


def torchcfm() -> tuple[Any, Any, dict[str, Any]]:
    from torchcfm.models.unet.unet import UNetModelWrapper

    net = UNetModelWrapper(
        dim=(3, 16, 16),
        num_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_resolutions="8",
        use_checkpoint=True,
    )
    return net, FlowBackbone, {"time_first": True}


PUBLISHED: dict[str, tuple[str, Callable[[], tuple[Any, Any, dict[str, Any]]]]] = {
    "denoising-diffusion-pytorch": ("`Unet`", lucidrains),
    "k-diffusion": ("`Denoiser` of `ImageDenoiserModelV1`", k_diffusion_denoiser),
    "k-diffusion and denoising-diffusion-pytorch": ("`DiscreteEpsDDPMDenoiser` of `Unet`", k_diffusion_wrapper),
    "torchcfm": ("`UNetModelWrapper` (OpenAI's UNet with its own checkpointing)", torchcfm),
}
"""Packages of other projects and what makes a small network of theirs, its adapter and the adapter's options."""

IN_TURN = ("ddnm", "dps", "repaint", "pigdm", "ddnm")


def published() -> list[dict[str, Any]]:
    """One row for every network of `PUBLISHED` whose packages are installed, with random weights: the wrapped module against the
    same module as a plain function, then samplers with and without a gradient in turn on one backbone."""
    from test_own_network import SHAPE, restored

    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    rows = []
    for packages, (name, make) in PUBLISHED.items():
        torch.manual_seed(0)
        try:
            net, adapter, options = make()
        except ImportError as error:
            print(f"  {packages}: left out, {error}")
            continue
        with torch.no_grad():
            for parameter in net.parameters():  # layers that begin at zero would hide what is behind them
                parameter.add_(0.03 * torch.randn(parameter.shape))
        net.eval()
        function = adapter(lambda *inputs, net=net: net(*inputs), image_shape=SHAPE, **options)
        module = adapter(net, image_shape=SHAPE, precision="float32", **options)
        module.predict(x, 500)
        output, gradient = (_difference(a, b) for a, b in zip(_both(module, x), _both(function, x), strict=True))
        apart = {}
        for precision in ("float32", "auto"):
            backbone = adapter(net, image_shape=SHAPE, precision=precision, **options)
            pairs = [(restored(backbone, sampler), restored(function, sampler)) for sampler in IN_TURN]
            apart[precision] = max(float((a - b).norm() / b.norm()) for a, b in pairs)
        far = {precision: f"{value:.0e}" if value else "0" for precision, value in apart.items()}
        said = f"{adapter.__name__}; {', '.join(IN_TURN)} in turn: {far['float32']} apart in float32, {far['auto']} in auto"
        versions = " and ".join(f"{p} {version(p)}" for p in packages.split(" and "))
        row = {"what": f"{name}, {versions}", "run": said, "output": output, "gradient": gradient, "samplers": apart}
        rows.append(row)
        print(f"  {packages}: {output:.1e} {gradient:.1e} {apart}", flush=True)
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
    rows = files() + networks() + published()
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
