"""What `make demo` repairs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from invdiff.data import raccoon
from invdiff.demo import damaged, repair_photo


def test_damage_lies_under_its_mask_and_nowhere_else():
    photo = raccoon()
    broken, mask = damaged(photo)
    holes = np.asarray(mask) == 0
    changed = (np.asarray(broken) != np.asarray(photo)).any(-1)
    assert photo.size == broken.size == mask.size == (640, 480)
    assert 0.02 < holes.mean() < 0.06 and not (changed & ~holes).any() and changed.mean() > holes.mean() / 3
    for part in (holes[:400, :300], holes[400:, :340], holes[400:, 500:]):  # scratch, caption, date
        assert part.any()


def test_the_photograph_is_repaired_in_its_holes_only(tmp_path):
    repair = repair_photo(tmp_path / "demo", steps=3)
    broken, mask, fixed, sheet = (np.asarray(Image.open(file)) for file in repair.files)
    holes = mask == 0
    assert np.array_equal(fixed[~holes], broken[~holes]) and (fixed[holes] != broken[holes]).any(-1).mean() > 0.9
    assert np.array_equal(sheet[:, :640], broken) and np.array_equal(sheet[:, -640:], fixed)
    assert repair.nfe == 3 and repair.psnr > 10 and np.isclose(repair.missing, holes.mean())
