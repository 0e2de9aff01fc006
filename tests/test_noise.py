"""The one source of Gaussian draws."""

from __future__ import annotations

import pytest
import torch

from invdiff.noise import NoiseSource


@pytest.mark.parametrize("shape", [(1, 1, 8), (3, 16, 16), (3, 64, 64)])
def test_a_draw_depends_on_seed_step_and_role_only(shape):
    many = NoiseSource([(s, 0) for s in range(5)], shape)
    one = NoiseSource([(3, 0)], shape)
    for step in (7, 0, 123, 7):  # in any order, any number of times
        assert torch.equal(many.draw(step, "step")[3], one.draw(step, "step")[0])
    draws = [
        one.draw(7, "step"),
        one.draw(8, "step"),
        one.draw(7, "known"),
        NoiseSource([(3, 1)], shape).draw(7, "step"),
    ]
    for i, a in enumerate(draws):
        for b in draws[i + 1 :]:
            assert not torch.equal(a, b)


def test_draws_are_standard_normal_and_independent():
    x = NoiseSource([(0, i) for i in range(2000)], (1, 1, 8)).draw(3, "step").flatten(1)
    y = NoiseSource([(0, i) for i in range(2000)], (1, 1, 8)).draw(4, "step").flatten(1)
    assert abs(float(x.mean())) < 0.03 and abs(float(x.std()) - 1) < 0.03
    assert float((x.T @ x / 2000 - torch.eye(8)).abs().max()) < 0.12
    assert float((x.T @ y / 2000).abs().max()) < 0.12


def test_a_replacement_is_asked_for_shapes():
    source = NoiseSource([(0, 0)] * 2, (3, 4, 4), replace=lambda shape: torch.full(shape, 7.0))
    assert torch.equal(source.at(5)("step"), torch.full((2, 3, 4, 4), 7.0))
