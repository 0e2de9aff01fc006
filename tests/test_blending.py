"""Poisson blending: the answer's gradients where pixels are missing, the photo's values elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import quiet_solve

import invdiff as iv
from invdiff import InvdiffError, Mask
from invdiff.blending import poisson_blend

SIZE = (40, 52)


def holes(*boxes: tuple[int, int, int, int]) -> torch.Tensor:
    known = torch.ones(1, 1, *SIZE, dtype=torch.bool)
    for top, left, height, width in boxes:
        known[..., top : top + height, left : left + width] = False
    return known


INSIDE, AT_EDGE = holes((8, 10, 15, 20), (30, 40, 4, 4)), holes((0, 10, 15, 20), (30, 40, 10, 12), (20, 0, 3, 52))


def picture(seed: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, *SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("known", [INSIDE, AT_EDGE], ids=["inside", "at the edge"])
@pytest.mark.parametrize("offset", [0.0, 0.3, -7.0])
def test_a_constant_offset_between_answer_and_photo_vanishes(known, offset):
    photo = picture(0)
    torch.testing.assert_close(poisson_blend(photo + offset, photo, known), photo, atol=1e-10, rtol=0)


def test_a_harmonic_difference_vanishes_within_the_picture():
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) / 50 for n in SIZE), indexing="ij")
    photo = picture(1)
    for harmonic in (0.3 + 2 * x - 5 * y, x * y, x**2 - y**2):
        torch.testing.assert_close(poisson_blend(photo + harmonic, photo, INSIDE), photo, atol=1e-9, rtol=0)


@pytest.mark.parametrize("known", [INSIDE, AT_EDGE], ids=["inside", "at the edge"])
def test_what_is_filled_has_the_laplacian_of_the_answer(known):
    answer, photo = picture(2), picture(3)
    difference = poisson_blend(answer, photo, known) - answer
    padded = torch.nn.functional.pad(difference, (1, 1, 1, 1), mode="replicate")
    around = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    laplacian = (around - 4 * difference)[(~known).expand_as(difference)]
    assert float(laplacian.abs().max()) < 1e-10


def test_no_step_at_the_border_of_a_hole_is_larger_than_those_within():
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in SIZE), indexing="ij")
    photo = (0.5 + 0.3 * torch.sin(x / 6) * torch.cos(y / 7)).expand(1, 3, *SIZE)
    answer = photo + 0.2 + 0.05 * torch.sin(x / 9)
    missing = ~INSIDE.expand_as(photo)
    border = missing[..., 1:] != missing[..., :-1]

    def worst(f: torch.Tensor) -> tuple[float, float]:
        steps = f.diff(dim=-1).abs()
        return float(steps[border].max()), float(steps[~border].max())

    pasted = worst(torch.where(missing, answer, photo))
    seam, rest = worst(poisson_blend(answer, photo, INSIDE))
    assert pasted[0] > 3 * pasted[1] and seam <= rest


def test_each_image_of_a_batch_has_its_own_holes_and_channels_theirs():
    answer, photo = picture(4, batch=3), picture(5, batch=3)
    known = torch.cat([INSIDE, AT_EDGE, torch.ones_like(INSIDE)]).expand(3, 3, *SIZE).clone()
    known[0, 1] = True
    together = poisson_blend(answer, photo, known)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], poisson_blend(answer[[i]], photo[[i]], known[[i]]))
    assert torch.equal(together[2], photo[2]) and torch.equal(together[0, 1], photo[0, 1])


def test_a_hole_that_touches_nothing_known_keeps_the_answer():
    answer = picture(6)
    assert torch.equal(poisson_blend(answer, picture(7), torch.zeros_like(INSIDE)), answer)


@pytest.mark.parametrize("n_samples", [1, 2])
def test_a_blended_solution_has_the_known_pixels_bit_for_bit(gaussian, clean, n_samples):
    masks = torch.stack([iv.make_mask("box", 16), iv.make_mask("half", 16)])[:, None]
    solution = quiet_solve(Mask(masks), clean[:2], "dps", backbone=gaussian, steps=5, n_samples=n_samples, scale=0.1)
    blended = solution.blended()
    known = masks.bool().repeat_interleave(n_samples, 0).expand_as(blended.x)
    truth = clean[:2].repeat_interleave(n_samples, 0)
    assert torch.equal(blended.x[known], truth[known])
    assert not torch.equal(solution.x[known], truth[known])  # it had not kept them
    assert blended.settings["blended"] and "blended" not in solution.settings


@pytest.mark.parametrize("operator", [iv.SuperResolution(2, "box"), iv.Identity(), Mask(np.ones((16, 16)))])
def test_only_holes_can_be_blended(gaussian, clean, operator):
    solution = quiet_solve(operator, operator(clean[:1]), "ddnm", backbone=gaussian, steps=2)
    with pytest.raises(InvdiffError, match=r"blended.*mask"):
        solution.blended()
