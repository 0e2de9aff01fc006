"""LPIPS: how different two images look to a network."""

from __future__ import annotations

import socket
import threading
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.metrics.base import Metric, Unavailable, import_reason, register_metric

_FILE = "alexnet-owt-7be5be79.pth"
_HOST = "download.pytorch.org"
_PATIENCE = 2.0  # seconds to find out that there is no network


def lpips(x: Tensor, truth: Tensor) -> Tensor:
    """Learned perceptual image patch similarity (Zhang et al., 2018), AlexNet, version 0.1, (B,).

    Args:
        x, truth: (B, 3 or 1, H, W) in [0, 1].

    Raises:
        Unavailable: the package, AlexNet's weights or a large enough image (32 pixels) is missing.
    """
    if min(x.shape[-2:]) < 32:
        raise Unavailable(f"LPIPS needs images of at least 32 x 32 pixels; these are {x.shape[-2]} x {x.shape[-1]}")
    model = _model()
    a, b = (v.float().cpu().expand(-1, 3, -1, -1) * 2 - 1 for v in (x, truth))
    with torch.inference_mode():
        return torch.cat([model(p, q).reshape(-1) for p, q in zip(a.split(16), b.split(16), strict=True)]).double()


def lpips_reason() -> str | None:
    """Why LPIPS cannot be had here, or None. Fetches nothing; without a network it answers within two seconds."""
    try:
        import lpips as _  # noqa: F401
    except Exception as error:
        return import_reason(error, "lpips")
    return weights_reason("AlexNet's weights, on which LPIPS is built,", f"https://{_HOST}/models/{_FILE}", 233)


def weights_reason(what: str, address: str, megabytes: int) -> str | None:
    """Why weights from the web cannot be had here, or None: they are here already, or their host can be reached."""
    host, file = address.split("/")[2], address.rpartition("/")[2]
    path = weights_file(file)
    if path.is_file() or reachable(host):
        return None
    return f"{what} are not on this machine and {host} cannot be reached. Put {address} ({megabytes} MB) at {path}"


def weights_file(name: str) -> Path:
    """Where torch keeps downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


@lru_cache(maxsize=1)
def _model() -> Any:
    if (reason := lpips_reason()) is not None:
        raise Unavailable(reason)
    import lpips as package

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return package.LPIPS(net="alex", verbose=False).eval().requires_grad_(False)
    except Exception as error:
        raise Unavailable(f"AlexNet's weights could not be loaded or fetched from {_HOST}: {error}") from error


def reachable(host: str) -> bool:
    """Whether `host` answers on the web within two seconds, the look-up of its name included."""
    answered = threading.Event()

    def knock() -> None:
        with suppress(OSError):
            socket.create_connection((host, 443), _PATIENCE).close()
            answered.set()

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return answered.is_set()


register_metric(
    Metric(
        "lpips",
        "LPIPS",
        "lower",
        "",
        {"reference"},
        "perceptual distance to the true image (AlexNet, v0.1)",
        lpips,
        lpips_reason,
        resolution=1e-5,
    )
)
