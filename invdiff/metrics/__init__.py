"""Metrics: one file per family, each metric with its direction, its unit and what it needs.

They know tensors, and of operators what they read; imported by `bench`, the demo and the command line.
"""

from invdiff.metrics import posterior as posterior
from invdiff.metrics.base import METRICS, Metric, Unavailable, get_metric, metric_names, register_metric
from invdiff.metrics.cost import GRADIENT_CALL, forward_equivalents
from invdiff.metrics.distortion import psnr, rmse, ssim
from invdiff.metrics.generative import fid, frechet_distance, kernel_distance, kid, manifold_share
from invdiff.metrics.misfit import misfit
from invdiff.metrics.perceptual import lpips
from invdiff.metrics.ranks import coverage, rank_histogram, ranks, uniformity
from invdiff.metrics.uncertainty import calibration, diversity

__all__ = [
    "GRADIENT_CALL",
    "METRICS",
    "Metric",
    "Unavailable",
    "calibration",
    "coverage",
    "diversity",
    "fid",
    "forward_equivalents",
    "frechet_distance",
    "get_metric",
    "kernel_distance",
    "kid",
    "lpips",
    "manifold_share",
    "metric_names",
    "misfit",
    "posterior",
    "psnr",
    "rank_histogram",
    "ranks",
    "register_metric",
    "rmse",
    "ssim",
    "uniformity",
]
