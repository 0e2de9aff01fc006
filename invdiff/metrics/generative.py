"""FID, KID, precision and recall: whether a set of restorations looks like a set of true images.

Features are those of the Inception network of the FID paper as torch-fidelity loads it (extra ``fid``); the formulas
are written out here. All four are biased on small sets: fewer than 100 images give no number at all.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.metrics.base import Metric, Unavailable, import_reason, register_metric
from invdiff.metrics.perceptual import weights_reason

SMALLEST_SET = 100
_FILE = "weights-inception-2015-12-05-6726825d.pth"
_HOST = "github.com"


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of two Gaussians fitted to features (N, d) and (M, d) (Heusel et al., 2017, eq. 6).

    ``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``, the trace of the root from the eigenvalues of S_a S_b.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    s_a, s_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    root = np.sqrt(np.clip(np.linalg.eigvals(s_a @ s_b).real, 0, None)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s_a) + np.trace(s_b) - 2 * root)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared maximum mean discrepancy, unbiased, with the kernel ``(u.v / d + 1)^3`` (Binkowski et al., 2018)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    n, m, d = len(a), len(b), a.shape[1]
    aa, bb, ab = ((u @ v.T / d + 1) ** 3 for u, v in ((a, a), (b, b), (a, b)))
    return float((aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1)) - 2 * ab.mean())


def manifold_share(points: np.ndarray, manifold: np.ndarray, k: int = 3) -> float:
    """Share of `points` within the k-nearest-neighbour balls of `manifold` (Kynkaanniemi et al., 2019, eq. 1-2).

    Precision: restorations within the balls of the true images. Recall: the other way round.
    """
    from scipy.spatial.distance import cdist

    radii = np.sort(cdist(manifold, manifold), axis=1)[:, min(k, len(manifold) - 1)]
    return float((cdist(points, manifold) <= radii).any(1).mean())


def features(x: Tensor) -> np.ndarray:
    """Inception's 2,048 pooled features of images (N, 3 or 1, H, W) in [0, 1].

    Raises:
        Unavailable: torch-fidelity or the weights are missing.
    """
    network = _network()
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        return torch.cat([network(part)[0] for part in pixels.split(32)]).double().numpy()


def generative_reason() -> str | None:
    """Why the features cannot be had here, or None."""
    try:
        import torch_fidelity as _  # noqa: F401
    except Exception as error:
        return import_reason(error, "torch-fidelity", "fid")
    address = f"https://{_HOST}/toshas/torch-fidelity/releases/download/v0.2.0/{_FILE}"
    return weights_reason("Inception's weights", address, 96)


@lru_cache(maxsize=1)
def _network() -> Any:
    if (reason := generative_reason()) is not None:
        raise Unavailable(reason)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).eval().requires_grad_(False)
    except Exception as error:
        raise Unavailable(f"Inception's weights could not be loaded or fetched from {_HOST}: {error}") from error


_CACHE: dict[int, tuple[Tensor, np.ndarray]] = {}


def _pair(restored: Tensor, truths: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features of both sets; those of a tensor are computed once while it lives in the small cache."""
    fewest = min(len(restored), len(truths))
    if fewest < SMALLEST_SET:
        raise Unavailable(f"needs at least {SMALLEST_SET} different images on both sides; this set has {fewest}")
    found = []
    for x in (restored, truths):
        if id(x) not in _CACHE or _CACHE[id(x)][0] is not x:
            while len(_CACHE) >= 2:
                _CACHE.pop(next(iter(_CACHE)))
            _CACHE[id(x)] = (x, features(x))
        found.append(_CACHE[id(x)][1])
    return found[0], found[1]


def fid(restored: Tensor, truths: Tensor) -> float:
    """Frechet inception distance between restorations (N, C, H, W) and true images (M, C, H, W), [0, 1]."""
    return frechet_distance(*_pair(restored, truths))


def kid(restored: Tensor, truths: Tensor) -> float:
    """Kernel inception distance, over the whole sets."""
    return kernel_distance(*_pair(restored, truths))


def precision(restored: Tensor, truths: Tensor) -> float:
    """Share of restorations that look like true images."""
    return manifold_share(*_pair(restored, truths))


def recall(restored: Tensor, truths: Tensor) -> float:
    """Share of true images that the restorations cover."""
    a, b = _pair(restored, truths)
    return manifold_share(b, a)


register_metric(
    Metric(
        "fid",
        "FID",
        "lower",
        "",
        {"set", "reference"},
        "Frechet inception distance to the true images",
        fid,
        generative_reason,
        2,
    )
)
register_metric(
    Metric(
        "kid",
        "KID",
        "lower",
        "",
        {"set", "reference"},
        "kernel inception distance to the true images",
        kid,
        generative_reason,
        4,
    )
)
register_metric(
    Metric(
        "precision",
        "precision",
        "higher",
        "",
        {"set", "reference"},
        "share of restorations that look like true images",
        precision,
        generative_reason,
        2,
    )
)
register_metric(
    Metric(
        "recall",
        "recall",
        "higher",
        "",
        {"set", "reference"},
        "share of true images that restorations cover",
        recall,
        generative_reason,
        2,
    )
)
