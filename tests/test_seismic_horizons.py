"""The horizon tracker of docs/seismic_horizons.py, on reflectors that are known."""

import torch

from docs.seismic_horizons import track

COLUMNS = torch.arange(40)


def image_of(rows: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
    image = torch.zeros(30, 40)
    image[rows, COLUMNS] = strength
    return image


def test_a_bent_reflector_is_followed_among_others_and_noise() -> None:
    rows = (12 + 4 * torch.sin(COLUMNS / 8)).round().long()
    images = torch.stack([image_of(rows) + image_of(rows + 10, 0.6), image_of(rows + 2)])
    noise = 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for column in (0, 17, 39):
        found = track(images + noise, int(rows[column]), column, near=2)
        assert torch.equal(found[0], rows)
        assert torch.equal(found[1], rows + 2)


def test_a_path_changes_by_at_most_one_row() -> None:
    images = torch.rand(5, 30, 40, generator=torch.Generator().manual_seed(1))
    found = track(images, 0, 20)
    assert (found[:, 20] == 0).all()
    assert found.diff(dim=1).abs().max() == 1
    assert found.min() >= 0


def test_it_is_the_best_path() -> None:
    images = torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(2))
    best = max(
        (sum(images[0, row, column] for column, row in enumerate(path)).item(), path)
        for path in paths(4, 5)
        if path[2] == 1
    )[1]
    assert track(images, 1, 2)[0].tolist() == best


def paths(height: int, width: int) -> list[list[int]]:
    found = [[row] for row in range(height)]
    for _ in range(width - 1):
        found = [[*p, r] for p in found for r in range(height) if abs(r - p[-1]) <= 1]
    return found
