"""Gaussian mixtures as backbones: exact denoisers of priors with modes, and of pictures when fitted to them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from invdiff.backbones.base import Prediction
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.checks import whole
from invdiff.errors import InvdiffError
from invdiff.files import replace_file
from invdiff.noise import standard_normal
from invdiff.priors.gaussian import (
    AnalyticBackbone,
    Array,
    Level,
    image_shape_of,
    numbers,
    variances,
)

if TYPE_CHECKING:
    from invdiff.priors.posterior import AffinePrior, Measurement, MixturePosterior

LOG_2PI = math.log(2 * math.pi)
FORMAT = "invdiff-gaussian-mixture-1"


class GaussianMixtureBackbone(AnalyticBackbone):
    """The exact denoiser of a Gaussian mixture, x0 ~ sum_k w_k N(m_k, S_k).

    With ``a = alpha_bar[t]``, ``S_k,t = a S_k + (1 - a) I`` and the responsibilities
    ``pi_k(x_t) ~ w_k N(x_t; sqrt(a) m_k, S_k,t)`` (normalised by log-sum-exp),

        E[x0  | x_t] = sum_k pi_k (m_k + sqrt(a) S_k S_k,t^-1 (x_t - sqrt(a) m_k))
        E[eps | x_t] = sqrt(1 - a) sum_k pi_k S_k,t^-1 (x_t - sqrt(a) m_k).

    Low-rank covariances ``S_k = F_k F_k^T + noise_k I`` are kept by the eigenvectors of F_k F_k^T: a prediction at any
    level costs two products with K r vectors and no decomposition.

    Args:
        weights: (K,), not negative, not all zero; divided by their sum.
        means: (K, C, H, W), model range.
        covariances: a number or (K,): isotropic variances. (K, C, H, W): diagonals. For low-rank ones see `low_rank`.
        schedule: the times that it counts in; linear with 1,000 times by default.
        name: what reports call it.

    Predictions have the precision of the parameters: float64 if any is float64, else float32.

    Raises:
        InvdiffError: shapes that don't fit each other, negative weights or variances.
    """

    _parameters = ("_means", "_log_weights", "_noise", "_diagonals", "_basis", "_spectrum", "_offsets")
    _means: Tensor  # (K, d)
    _log_weights: Tensor  # (K,)
    _noise: Tensor | None = None  # (K,)
    _diagonals: Tensor | None = None  # (K, d)
    _basis: Tensor | None = None  # (K r, d), rows are the eigenvectors of F F^T, zero where the eigenvalue is
    _spectrum: Tensor | None = None  # (K, r), eigenvalues of F F^T
    _offsets: Tensor | None = None  # (K, r), basis times (mean - centre)
    log_likelihoods: tuple[float, ...] = ()

    @torch.inference_mode(False)
    def __init__(
        self,
        weights: Array,
        means: Array,
        covariances: Array,
        schedule: NoiseSchedule | None = None,
        *,
        name: str = "gaussian-mixture",
    ) -> None:
        covariances = numbers("covariances", covariances)
        self._begin(weights, means, covariances.dtype, schedule, name)
        K = self.components
        if covariances.ndim == 0:
            covariances = covariances.expand(K)
        if tuple(covariances.shape) == (K,):
            self._set_low_rank(self._means.new_zeros(K, self.dimension, 0), covariances)
        elif tuple(covariances.shape) == (K, *self.image_shape):
            self._diagonals = variances("covariances", covariances).reshape(K, -1).to(self._means)
        else:
            raise InvdiffError(
                f"covariances has shape {tuple(covariances.shape)}; accepted are a number, ({K},) and "
                f"{(K, *self.image_shape)}. Low-rank covariances are made by GaussianMixtureBackbone.low_rank"
            )

    @classmethod
    @torch.inference_mode(False)
    def low_rank(
        cls,
        weights: Array,
        means: Array,
        factors: Array,
        noise: Array,
        schedule: NoiseSchedule | None = None,
        *,
        name: str = "gaussian-mixture",
    ) -> GaussianMixtureBackbone:
        """Components with ``S_k = F_k F_k^T + noise_k I``.

        Args:
            weights: (K,).
            means: (K, C, H, W).
            factors: F, (K, d, r) with d = C H W.
            noise: variance around the subspace, a number or (K,).
            schedule, name: as for the class.

        Raises:
            InvdiffError: shapes that don't fit each other, negative weights or noise.
        """
        factors, noise = numbers("factors", factors), numbers("noise", noise)
        made = cls.__new__(cls)
        made._begin(weights, means, torch.promote_types(factors.dtype, noise.dtype), schedule, name)
        K, d = made.components, made.dimension
        if factors.ndim != 3 or tuple(factors.shape[:2]) != (K, d) or factors.shape[2] > d:
            raise InvdiffError(f"factors must have shape ({K}, {d}, r) with r up to {d}, got {tuple(factors.shape)}")
        if noise.ndim == 0:
            noise = noise.expand(K)
        if tuple(noise.shape) != (K,):
            raise InvdiffError(f"noise must be a number or have shape ({K},), got {tuple(noise.shape)}")
        made._set_low_rank(factors, noise)
        return made

    def _begin(
        self, weights: Array, means: Array, precision: torch.dtype, schedule: NoiseSchedule | None, name: str
    ) -> None:
        weights, means = numbers("weights", weights), numbers("means", means)
        if means.ndim != 4 or means.shape[0] < 1:
            raise InvdiffError(f"means must be one image per component, (K, C, H, W), got shape {tuple(means.shape)}")
        K = len(means)
        if tuple(weights.shape) != (K,):
            raise InvdiffError(f"weights must have shape ({K},), one per mean, got {tuple(weights.shape)}")
        if bool((weights < 0).any()) or float(weights.sum()) <= 0:
            raise InvdiffError(f"weights must be 0 or more and not all zero, got {weights.tolist()}")
        self.image_shape = image_shape_of("means", means[0])
        self.schedule = NoiseSchedule.linear() if schedule is None else schedule
        self.name = name
        precision = torch.promote_types(precision, means.dtype)  # a list of weights does not make it finer
        self._means = means.to(precision).reshape(K, -1)
        weights = weights.double()
        self._log_weights = (weights / weights.sum()).log().to(means.device, precision)

    def _set_low_rank(self, factors: Tensor, noise: Tensor) -> None:
        """Eigenvectors and eigenvalues of every ``F F^T``, through the small ``F^T F``, in float64."""
        K, d, r = factors.shape
        means = self._means
        self._noise = variances("noise", noise).to(means)
        self._basis, self._spectrum = means.new_zeros(K * r, d), means.new_zeros(K, r)
        self._offsets = means.new_zeros(K, r)
        for k in range(K if r else 0):
            F = factors[k].to(means.device, torch.float64)
            values, rotation = torch.linalg.eigh(F.mT @ F)
            values = torch.where(values > 1e-13 * values[-1].clamp_min(1e-300), values, 0.0)
            rows = (F @ rotation).mT / torch.where(values > 0, values, math.inf).sqrt()[:, None]
            self._basis[k * r : (k + 1) * r] = rows.to(means.dtype)
            self._spectrum[k] = values.to(means.dtype)
            self._offsets[k] = (rows @ (means[k] - self._centre).double()).to(means.dtype)

    # ---- the prior ------------------------------------------------------------------------------------------

    @property
    def components(self) -> int:
        """K."""
        return len(self._means)

    @property
    def rank(self) -> int:
        """r, 0 for isotropic and diagonal covariances."""
        return 0 if self._spectrum is None else self._spectrum.shape[1]

    @property
    def weights(self) -> Tensor:
        """(K,), summing to one."""
        return self._log_weights.exp()

    @property
    def means(self) -> Tensor:
        """(K, C, H, W)."""
        return self._means.reshape(-1, *self.image_shape)

    @property
    def mean(self) -> Tensor:
        """Of the mixture, (C, H, W)."""
        return (self.weights @ self._means).reshape(self.image_shape)

    @property
    def factors(self) -> Tensor:
        """F with orthogonal columns, (K, d, r)."""
        if self._basis is None or self._spectrum is None:
            return self._means.new_zeros(self.components, self.dimension, 0)
        rows = self._basis.reshape(self.components, -1, self.dimension) * self._spectrum.sqrt()[..., None]
        return rows.mT

    @property
    def noise(self) -> Tensor | None:
        """Isotropic variances, (K,); None for diagonal covariances."""
        return self._noise

    @property
    def variances(self) -> Tensor:
        """Marginal variances of the components, (K, C, H, W)."""
        if self._diagonals is not None:
            flat = self._diagonals
        else:
            assert self._noise is not None
            flat = self.factors.square().sum(-1) + self._noise[:, None]
        return flat.reshape(-1, *self.image_shape)

    def prior_sample(self, n: int, generator: torch.Generator | None = None, *, seed: int = 0) -> Tensor:
        """`n` images of the prior, (n, C, H, W): the same for the same seed, on every device."""
        from invdiff.priors.posterior import chunks, pick, started

        generator = started(seed, generator)
        parts = []
        for size in chunks(whole("n", n, low=1), self.dimension):
            chosen = pick(self.weights, size, generator).to(self.device)
            white = standard_normal((size, self.dimension), 0, generator).to(self._means)
            z = standard_normal((size, self.rank), 0, generator).to(self._means)
            parts.append(self._means[chosen] + self._deviations(chosen, white, z))
        return torch.cat(parts).reshape(-1, *self.image_shape)

    def log_prob(self, x: Tensor, t: int | Tensor = -1) -> Tensor:
        """Logarithm of the density of x_t at `x`, (B, C, H, W) -> (B,); of the clean image by default."""
        flat = self._flat(x, "x")
        return self._log_joint(flat, *self._levels(t, flat))[0].logsumexp(-1).to(self.dtype)

    def responsibilities(self, x: Tensor, t: int | Tensor = -1) -> Tensor:
        """Probability of every component given x_t = `x`, (B, C, H, W) -> (B, K)."""
        flat = self._flat(x, "x")
        return self._log_joint(flat, *self._levels(t, flat))[0].softmax(-1).to(self.dtype)

    # ---- the denoiser ---------------------------------------------------------------------------------------

    def predict(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        flat = self._flat(x_t)
        a, b = self._levels(t, flat)
        joint, parts = self._log_joint(flat, a, b)
        pi = joint.softmax(-1).to(self.dtype)
        x0, eps = (self._predict_diagonal if self._diagonals is not None else self._predict_low_rank)(pi, parts, a, b)
        shape = (-1, *self.image_shape)
        return Prediction(x0.reshape(shape), eps.reshape(shape))

    def posterior(self, operator: Measurement, y: Tensor, sigma_y: float = 0.0) -> MixturePosterior:
        """The exact distribution of x0 given ``y = A x0 + sigma_y n``; arguments as for `GaussianBackbone.posterior`.

        Returns:
            A `MixturePosterior`: `weights`, `means`, `components`, `mean`, `variance`, `covariance`, `sample(n, seed)`,
            `log_prob(x)`.
        """
        from invdiff.priors.posterior import mixture_posterior

        return mixture_posterior(self, operator, y, sigma_y)

    # ---- parts ----------------------------------------------------------------------------------------------

    @property
    def _centre(self) -> Tensor:
        """A point amid the means, from which distances are taken so that they keep their digits."""
        return self._means.mean(0)

    @property
    def _wide(self) -> torch.dtype:
        """In which squared distances are summed."""
        return self.dtype if self.device.type == "mps" else torch.float64

    def _log_joint(self, flat: Tensor, a: Level, b: Level) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``log w_k + log N(x_t; sqrt(a) m_k, S_k,t)``, (B, K), and what the prediction needs beside."""
        densities, parts = self._log_densities(flat, a, b)
        return self._log_weights + densities, parts

    def _log_densities(self, flat: Tensor, a: Level, b: Level) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``log N(x_t; sqrt(a) m_k, S_k,t)``, (B, K), and what the prediction needs beside."""
        if self._diagonals is not None:
            if isinstance(a, Tensor):
                a, b = a[..., None], b[..., None]  # type: ignore[index]
            total = (a * self._diagonals + b).clamp_min(torch.finfo(self.dtype).tiny)
            apart = flat[:, None] - a**0.5 * self._means
            terms = (apart.square() / total + total.log()).sum(-1, dtype=self._wide)
            return -0.5 * (terms + self.dimension * LOG_2PI), (apart, total)
        assert self._noise is not None and self._basis is not None
        assert self._spectrum is not None and self._offsets is not None
        wide, signal = self._wide, a**0.5
        floor = torch.finfo(self.dtype).tiny ** 0.5
        noise = (a * self._noise + b).clamp_min(floor)  # (K,) or (B, K)
        total = (a[..., None] if isinstance(a, Tensor) else a) * self._spectrum + noise[..., None]  # (.., K, r)
        apart = flat - signal * self._centre
        means = self._means - self._centre
        inner = (apart @ self._basis.mT).reshape(len(flat), *self._spectrum.shape)
        inner = inner - (signal[..., None] if isinstance(signal, Tensor) else signal) * self._offsets
        far, level = apart.to(wide), a.to(wide) if isinstance(a, Tensor) else a
        squares = far.square().sum(-1, keepdim=True) - 2 * level**0.5 * (far @ means.to(wide).mT)
        squares = squares + level * means.to(wide).square().sum(-1)
        along = inner.to(wide).square()
        across = (squares - along.sum(-1)).clamp_min(0)
        log_det = total.to(wide).log().sum(-1) + (self.dimension - self.rank) * noise.to(wide).log()
        terms = across / noise + (along / total).sum(-1) + log_det
        return -0.5 * (terms + self.dimension * LOG_2PI), (apart, inner, noise, total)

    def _predict_low_rank(self, pi: Tensor, parts: tuple[Tensor, ...], a: Level, b: Level) -> tuple[Tensor, Tensor]:
        apart, inner, noise, total = parts
        assert self._noise is not None and self._basis is not None and self._spectrum is not None
        signal = a**0.5
        share = pi / noise
        by_mean = share @ (self._means - self._centre)
        by_factor = ((share[..., None] * self._spectrum / total * inner).flatten(1)) @ self._basis
        x0 = self._centre + b * by_mean + signal * ((share @ self._noise)[:, None] * apart + b * by_factor)
        eps = b**0.5 * (share.sum(-1, keepdim=True) * apart - signal * by_mean - a * by_factor)
        return x0, eps

    def _predict_diagonal(self, pi: Tensor, parts: tuple[Tensor, ...], a: Level, b: Level) -> tuple[Tensor, Tensor]:
        apart, total = parts
        assert self._diagonals is not None
        whitened = pi[..., None] * apart / total
        x0 = pi @ self._means + a**0.5 * (self._diagonals * whitened).sum(1)
        return x0, b**0.5 * whitened.sum(1)

    def _deviations(self, chosen: Tensor, white: Tensor, z: Tensor) -> Tensor:
        """Draws around the means of the components `chosen`, (n,), from white (n, d) and z (n, r)."""
        if self._diagonals is not None:
            return self._diagonals[chosen].sqrt() * white
        assert self._noise is not None and self._basis is not None and self._spectrum is not None
        spread = white.new_zeros(len(white), *self._spectrum.shape)
        spread[torch.arange(len(white), device=white.device), chosen] = self._spectrum[chosen].sqrt() * z
        return self._noise[chosen, None].sqrt() * white + spread.flatten(1) @ self._basis

    def component(self, k: int) -> tuple[AffinePrior, float]:
        """Component k as ``m + T w + F z`` for `posterior`, and the number c where ``T = c I`` (0 where it isn't)."""
        from invdiff.priors.posterior import AffinePrior

        mean, d = self._means[k], self.dimension

        def density(x: Tensor) -> Tensor:
            return self._log_densities(x, 1.0, 0.0)[0][:, k]

        if self._diagonals is not None:
            variance = self._diagonals[k]
            root = variance.sqrt()

            def scale(x: Tensor) -> Tensor:
                return root * x

            full = bool((variance > 0).all())
            return AffinePrior(mean, scale, scale, d, variance, None, density if full else None), 0.0
        assert self._noise is not None and self._basis is not None and self._spectrum is not None
        rows = self._basis[k * self.rank : (k + 1) * self.rank]
        factor, noise = (rows * self._spectrum[k].sqrt()[:, None]).mT, float(self._noise[k])
        if noise == 0:
            prior = AffinePrior(mean, lambda z: z @ factor.mT, lambda x: x @ factor, self.rank, factor.square().sum(1))
            return prior, 0.0
        std = math.sqrt(noise)

        def by_std(x: Tensor) -> Tensor:
            return std * x

        prior = AffinePrior(
            mean, by_std, by_std, d, torch.full_like(mean, noise), factor if self.rank else None, density
        )
        return prior, std

    # ---- files ----------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, half: bool = False, metadata: dict[str, str] | None = None) -> Path:
        """Write a safetensors file, through a temporary name.

        Args:
            path: where to.
            half: store means and factors in float16: half the size, to about three digits; variances and weights stay.
            metadata: strings to be kept beside, such as what the mixture was fitted to.

        Returns:
            The path.
        """
        from safetensors.torch import save

        tensors = {
            "log_weights": self._log_weights,
            "means": self.means,
            "alpha_bar": self.schedule.chain.alpha_bar,
            "timesteps": self.schedule.chain.timesteps,
        }
        if self._diagonals is not None:
            tensors["diagonals"] = self._diagonals
        else:
            assert self._noise is not None
            tensors |= {"factors": self.factors, "noise": self._noise}
        for name in ("means", "factors", "diagonals"):
            if half and name in tensors:
                tensors[name] = tensors[name].half()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        about = {"format": FORMAT, "name": self.name, "dtype": str(self.dtype).removeprefix("torch.")}
        about["log_likelihoods"] = json.dumps(self.log_likelihoods)
        data = save(tensors, {**(metadata or {}), **about})
        path = Path(path)
        replace_file(path, data)
        return path

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, schedule: NoiseSchedule | None = None, device: torch.device | str = "cpu"
    ) -> GaussianMixtureBackbone:
        """The mixture of a file that `save` wrote.

        Args:
            path: the file.
            schedule: other times than those it was saved with.
            device: where to put it.

        Raises:
            InvdiffError: no such file, or one of another kind.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InvdiffError(f"path {str(path)!r} cannot be read as a safetensors file: {error}") from error
        if about.get("format") != FORMAT:
            raise InvdiffError(
                f"path {str(path)!r} is no saved Gaussian mixture: its format is {about.get('format')!r}"
            )
        dtype = torch.float64 if about["dtype"] == "float64" else torch.float32
        if schedule is None:
            schedule = NoiseSchedule(tensors["alpha_bar"], tensors["timesteps"])
        weights, means = tensors["log_weights"].double().exp().to(dtype), tensors["means"].to(dtype)
        if "diagonals" in tensors:
            made = cls(
                weights, means, tensors["diagonals"].to(dtype).reshape(means.shape), schedule, name=about["name"]
            )
        else:
            factors, noise = tensors["factors"].to(dtype), tensors["noise"].to(dtype)
            made = cls.low_rank(weights, means, factors, noise, schedule, name=about["name"])
        made.log_likelihoods = tuple(json.loads(about.get("log_likelihoods", "[]")))
        return made.to(device)

    # ---- fitting --------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        images: Tensor,
        components: int,
        rank: int,
        *,
        seed: int = 0,
        iterations: int = 30,
        tolerance: float = 1e-5,
        noise_floor: float = 1e-4,
        schedule: NoiseSchedule | None = None,
        name: str = "gaussian-mixture",
    ) -> GaussianMixtureBackbone:
        """A mixture of probabilistic principal component analysers (Tipping & Bishop, Neural Computation 1999).

        Expectation-maximisation from a k-means start: responsibilities by log-sum-exp, then for every component its
        weighted mean, the `rank` leading eigenpairs of its weighted covariance and the mean of the other eigenvalues as
        noise. Each iteration raises the likelihood; the values are kept in `log_likelihoods` (per image, in nats).

        Args:
            images: (N, C, H, W) in model range.
            components: K, 1 or more.
            rank: r, 0 or more and below C H W; directions that a component varies in beside its noise.
            seed: of the start; the same seed gives the same mixture.
            iterations: at most so many.
            tolerance: stop when the log-likelihood per image entry rises by less.
            noise_floor: least noise variance, against components that collapse on a few images.
            schedule, name: as for the class.

        Raises:
            InvdiffError: images that are no batch of finite images, too few of them, or an argument out of its range.
        """
        from invdiff.priors.fit import fit_mixture

        found = fit_mixture(images, components, rank, seed, iterations, tolerance, noise_floor)
        shape = tuple(images.shape[1:])
        means = found.means.reshape(-1, *shape)
        made = cls.low_rank(found.weights, means, found.factors, found.noise, schedule, name=name)
        made.log_likelihoods = found.log_likelihoods
        return made

    def __repr__(self) -> str:
        kind = "diagonal" if self._diagonals is not None else f"rank {self.rank}" if self.rank else "isotropic"
        precision = str(self.dtype).removeprefix("torch.")
        return (
            f"GaussianMixtureBackbone({self.components} components, {kind}, image_shape={self.image_shape}, "
            f"{precision}, {self.device})"
        )
