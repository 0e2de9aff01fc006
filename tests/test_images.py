"""Pictures written for people."""

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff import InvdiffError
from invdiff.images import save_grid


def test_a_grid_has_a_row_for_every_batch(tmp_path):
    one = torch.full((3, 3, 4, 5), -1.0)
    one[1] = 1.0
    grey = torch.zeros(1, 1, 4, 5)
    save_grid(tmp_path / "grid.png", one, grey, zoom=2)
    picture = np.array(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (2 * 2 * 4, 3 * 2 * 5, 3)
    assert (picture[:8, 10:20] == 255).all() and (picture[:8, :10] == 0).all() and (picture[:8, 20:] == 0).all()
    assert (picture[8:, :10] == 128).all() and (picture[8:, 10:] == 0).all()  # filled up with black


def test_a_grid_takes_other_ranges_and_clips(tmp_path):
    save_grid(
        tmp_path / "grid.png", torch.tensor([-9.0, 0.0, 0.5, 9.0]).reshape(4, 1, 1, 1), value_range=(0, 1), zoom=1
    )
    assert np.array(Image.open(tmp_path / "grid.png"))[0, :, 0].tolist() == [0, 0, 128, 255]


@pytest.mark.parametrize(
    "rows",
    [(), (torch.zeros(3, 4, 4),), (torch.zeros(1, 2, 4, 4),), (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))],
)
def test_what_is_no_grid_is_refused(tmp_path, rows):
    with pytest.raises(InvdiffError, match="batches"):
        save_grid(tmp_path / "grid.png", *rows)
