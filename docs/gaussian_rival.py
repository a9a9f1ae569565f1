"""The least that a trained prior should beat: PYTHONPATH=. python docs/gaussian_rival.py.

A normal distribution with the mean and the covariance of the 16 000 training models of
weights/glow_layers_32. Its posterior mean is a matrix, there is no weight to tune, and an image
takes less than a millisecond. For the problems of study_layers and compressed_sensing_layers whose
operators are linear, and whose data are not made on a finer grid.
"""

import torch
from torch import Tensor, nn

from datamodules import LayerModels
from evaluation.table import summarise
from flowprior.metrics import psnr
from flowprior.physics import Gaussian, denoising, gaussian_blur, random_gaussian

SHAPE = (1, 32, 32)
MODELS = LayerModels(image_size=32, num_train=16000, num_val=4000, num_test=2000, n_bits=5)


def problems() -> dict[str, tuple[nn.Module, float, int]]:
    """Operators, standard deviations of the noise, and numbers of test models."""
    found = {
        "denoising": (denoising(SHAPE), 0.1, 24),
        "deblurring": (gaussian_blur(SHAPE, tau=1.5), 50 / 255, 24),
    }
    for share, count, seed in (
        ("5 %", 51, 1),
        ("10 %", 102, 1),
        ("10 %", 102, 2),
        ("25 %", 256, 1),
    ):
        operator = random_gaussian(SHAPE, measurements=count, seed=seed)
        found[f"{share} of the measurements, matrix {seed}"] = (operator, 0.02, 48)
    return found


def images(split: str, count: int) -> Tensor:
    """The first models of a split, (count, 1, 32, 32)."""
    return torch.from_numpy(MODELS.images(split).pixels(range(count)))


def posterior_mean(operator: nn.Module, sigma: float, y: Tensor, trained: Tensor) -> Tensor:
    """Means (B, 1, 32, 32) of images given data y, with the moments of training images."""
    rows = trained.flatten(1).double()
    mean, covariance = rows.mean(0), rows.T.cov()
    unit = torch.eye(rows.shape[1]).view(-1, *SHAPE)
    matrix = operator.A(unit).flatten(1).double().T
    data = matrix @ covariance @ matrix.T + sigma**2 * torch.eye(len(matrix)).double()
    gain = torch.linalg.solve(data, matrix @ covariance).T
    found = mean + (y.flatten(1).double() - matrix @ mean) @ gain.T
    return found.view(-1, *SHAPE).float()


def main() -> None:
    """Print the PSNR of each problem."""
    trained = images("train", 16000)
    for name, (operator, sigma, count) in problems().items():
        truth = images("test", count)
        y = Gaussian(sigma).add(operator.A(truth), seed=0, indices=range(count))
        found = posterior_mean(operator, sigma, y, trained)
        quality = summarise(enumerate(psnr(found, truth).tolist()))
        print(f"{name}: {quality.mean:.1f} ± {quality.ci95:.1f} dB, {count} models")


if __name__ == "__main__":
    main()
