"""How far the restoration is from the true image, pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from invdiff.errors import InvdiffError
from invdiff.metrics.base import Metric, register_metric

_SMALLEST = 1e-10  # mean squared error of a perfect restoration, so that averages stay finite: 100 dB


def rmse(x: Tensor, truth: Tensor) -> Tensor:
    """Root of the mean squared error, (B,), of images (B, C, H, W) in [0, 1]."""
    _check(x, truth)
    return (x.double() - truth.double()).square().flatten(1).mean(1).sqrt()


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, ``-10 log10(mean squared error)`` in dB for images in [0, 1], (B,); 100 at most."""
    return -10 * torch.log10(rmse(x, truth).square().clamp_min(_SMALLEST))


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) as scikit-image computes it, 7 x 7 windows, mean over channels, (B,).

    Raises:
        InvdiffError: an image smaller than 7 pixels.
    """
    from skimage.metrics import structural_similarity

    _check(x, truth)
    if min(x.shape[-2:]) < 7:
        raise InvdiffError(f"images must be of at least 7 x 7 pixels for ssim, got {x.shape[-2]} x {x.shape[-1]}")
    pairs = zip(x.double().cpu().numpy(), truth.double().cpu().numpy(), strict=True)
    return torch.tensor(
        [structural_similarity(a, b, data_range=1.0, channel_axis=0) for a, b in pairs], dtype=torch.float64
    )


def _check(x: Tensor, truth: Tensor) -> None:
    if x.shape != truth.shape or x.ndim != 4:
        raise InvdiffError(
            f"restoration and truth must be (B, C, H, W) of one shape, got {tuple(x.shape)} and {tuple(truth.shape)}"
        )


register_metric(
    Metric(
        "psnr",
        "PSNR",
        "higher",
        "dB",
        {"reference"},
        "peak signal-to-noise ratio against the true image",
        psnr,
        decimals=2,
        resolution=1e-3,
    )
)
register_metric(
    Metric(
        "ssim",
        "SSIM",
        "higher",
        "",
        {"reference"},
        "structural similarity to the true image (scikit-image)",
        ssim,
        resolution=1e-5,
    )
)
register_metric(
    Metric(
        "rmse",
        "RMSE",
        "lower",
        "of [0, 1]",
        {"reference"},
        "root mean squared error against the true image",
        rmse,
        decimals=4,
        resolution=1e-6,
    )
)
