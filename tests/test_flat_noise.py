"""Normal noise in flat areas, and the bound on the code length that it enters."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import flowprior
from datamodules import LayerModels
from datamodules.dequantize import ArrayImages, DequantizedImages, flat_areas
from evaluation.arrays import ArrayStore
from evaluation.density import DensityEvaluation
from flowprior.flows import Glow
from flowprior.losses import MaximumLikelihood
from flowprior.metrics import bits_per_dim, flat_noise_log_density
from tests.conftest import make_perturbed_glow

CUT_NORMAL = stats.truncnorm(-3, 3, 0.5, 1 / 6)


def digits(count=64, side=12, channels=1):
    """Bytes with large flat areas."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    pixels[..., : side // 2, :] = 0
    pixels[..., side // 2 :, : side // 3] = 255
    return pixels


def dequantized(pixels, n_bits=8, data_range=(-0.5, 0.5), **options):
    data = DequantizedImages(ArrayImages(pixels), "train", n_bits, data_range, **options)
    return data.__getitems__([(0, index) for index in range(len(data))])


def slow_flat_areas(levels):
    channels, height, width = levels.shape
    flat = np.zeros(levels.shape, bool)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                around = levels[c, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
                flat[c, i, j] = (around == levels[c, i, j]).all()
    return flat


def test_flat_areas_have_the_level_of_all_neighbours():
    random = np.random.default_rng(1)
    levels = random.integers(0, 2, (2, 40, 30)) * (random.random((2, 40, 30)) < 0.2)
    found = flat_areas(levels)
    assert 0.05 < found.mean() < 0.9
    np.testing.assert_array_equal(found, slow_flat_areas(levels))


@pytest.mark.parametrize("n_bits", [5, 8])
@pytest.mark.parametrize("data_range", [(-0.5, 0.5), (-1.0, 1.0)])
def test_noise_is_normal_where_it_is_flat_and_uniform_elsewhere(n_bits, data_range):
    pixels = digits()
    x = dequantized(pixels, n_bits, data_range, flat_noise=True)
    low, high = data_range
    exact = (x.double().numpy() - low) / (high - low) * 2**n_bits
    levels = pixels >> (8 - n_bits)
    np.testing.assert_array_equal(np.floor(exact), levels)
    noise = exact - levels
    flat = np.stack([slow_flat_areas(image) for image in levels])
    assert 0.3 < flat.mean() < 0.7
    assert stats.kstest(noise[flat], CUT_NORMAL.cdf).pvalue > 1e-3
    assert stats.kstest(noise[~flat], "uniform").pvalue > 1e-3
    plain = dequantized(pixels, n_bits, data_range)
    np.testing.assert_array_equal(x.numpy()[~flat], plain.numpy()[~flat])


@pytest.mark.parametrize("data_range", [(-0.5, 0.5), (-1.0, 1.0)])
def test_log_density_is_that_of_the_noise(data_range):
    pixels = digits(channels=2)
    x = dequantized(pixels, 8, data_range, flat_noise=True)
    low, high = data_range
    noise = np.mod((x.double().numpy() - low) / (high - low) * 256, 1)
    flat = np.stack([slow_flat_areas(image) for image in pixels])
    expected = np.where(flat, CUT_NORMAL.logpdf(noise), 0).sum((1, 2, 3))
    found = flat_noise_log_density(x, 8, data_range)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found.mean(), -CUT_NORMAL.entropy() * flat[0].sum(), rtol=0.08)


def test_a_model_that_knows_a_flat_image_needs_no_bits():
    x = dequantized(np.zeros((50, 1, 6, 6), np.uint8), flat_noise=True)
    log_prob = flat_noise_log_density(x, 8) + 36 * math.log(256)
    bits = bits_per_dim(log_prob - flat_noise_log_density(x, 8), 36, 8)
    torch.testing.assert_close(bits, torch.zeros(50), atol=1e-5, rtol=0)


def test_training_and_evaluation_count_the_noise(tmp_path):
    flow = make_perturbed_glow(1, 16, levels=2, steps=2, dtype=torch.float32)
    data = LayerModels(image_size=16, num_train=4, num_val=4, num_test=6, flat_noise=True)
    x = next(data.batches("test", 6))[1]
    noise = flat_noise_log_density(x, 8)
    assert noise.abs().min() > 1
    with torch.no_grad():
        expected = bits_per_dim(flow.log_prob(x) - noise, 256, 8)
        loss = MaximumLikelihood()
        loss.n_bits, loss.flat_noise = 8, True
        torch.testing.assert_close(loss(flow, x)["bits_per_dim"], expected)
    flowprior.save(flow, tmp_path / "weights")
    evaluation = DensityEvaluation(tmp_path / "weights", data, device="cpu")
    rows = evaluation.evaluate(evaluation.cells()[0], range(6), ArrayStore(tmp_path / "arrays"))
    found = torch.tensor([row["bits_per_dim"] for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_flat_noise_saves_bits_in_flat_areas():
    """The density of one Gaussian, fitted to black pixels with either noise."""
    bits = {}
    for flat_noise in (False, True):
        x = dequantized(np.zeros((200, 1, 8, 8), np.uint8), flat_noise=flat_noise).double()
        log_prob = torch.distributions.Normal(x.mean(), x.std()).log_prob(x).flatten(1).sum(1)
        noise = flat_noise_log_density(x, 8) if flat_noise else 0
        bits[flat_noise] = bits_per_dim(log_prob - noise, 64, 8).mean().item()
    assert bits[False] == pytest.approx(0.254, abs=0.02)  # ½ log2(2πe/12)
    assert 0 < bits[True] < 0.02


def test_it_changes_the_fingerprint_and_needs_bits():
    options = {"image_size": 16, "num_train": 4, "num_val": 2, "num_test": 2}
    plain, flat = (LayerModels(**options, flat_noise=flag) for flag in (False, True))
    assert plain.fingerprint() != flat.fingerprint()
    assert "flat_noise" not in plain.fingerprint()
    with pytest.raises(ValueError, match=r"data\.flat_noise.*n_bits"):
        LayerModels(**options, n_bits=None, flat_noise=True)


def test_training_is_told(tmp_path):
    """The module takes the setting from the data."""
    from pytorch_lightning import Trainer

    from lightning_modules import FlowModule

    module = FlowModule(Glow(1, 16, levels=2, steps=1, hidden_channels=4))
    data = LayerModels(
        image_size=16, num_train=4, num_val=2, num_test=2, batch_size=2, flat_noise=True
    )
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data)
    assert module.loss.flat_noise
    assert module.loss.n_bits == 8
