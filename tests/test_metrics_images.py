"""Image metrics against scikit-image."""

import sys
import threading
import time
from urllib.error import URLError

import lpips as lpips_package
import numpy as np
import pytest
import skimage.data
import skimage.metrics
import torch

from flowprior.metrics import lpips, psnr, snr, snr_shifted, ssim
from flowprior.metrics.images import _for_lpips, _lpips_network


@pytest.fixture(scope="module")
def images():
    """(x, truth), (3, 3, 48, 40)."""
    picture = torch.from_numpy(skimage.data.astronaut()[:144, 100:140] / 255).permute(2, 0, 1)
    truth = torch.stack(picture.split(48, 1)).float()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    strength = torch.tensor([0.01, 0.05, 0.3]).view(-1, 1, 1, 1)
    return truth + strength * noise, truth


def test_psnr_equals_scikit_image(images):
    x, truth = images
    for found, one, other in zip(psnr(x, truth), x.clamp(0, 1), truth, strict=True):
        one, other = one.numpy(), other.numpy()
        expected = skimage.metrics.peak_signal_noise_ratio(other, one, data_range=1)
        assert found.item() == pytest.approx(expected, abs=1e-4)


def test_psnr_of_equal_images_is_finite(images):
    _, truth = images
    torch.testing.assert_close(psnr(truth, truth), torch.full((3,), 150.0))
    assert psnr(truth + 1e-6, truth).max() < 130


def test_snr_of_known_images():
    """White with an error of a tenth in every pixel, and a half of black, a half of white."""
    white = torch.ones(1, 1, 2, 2)
    torch.testing.assert_close(snr_shifted(0.9 * white, white), torch.tensor([20.0]))
    expected = torch.tensor([20 * np.log10(5)], dtype=torch.float32)
    torch.testing.assert_close(snr(0.9 * white, white), expected)
    truth = torch.tensor([0.0, 1.0, 1.0, 0.0]).view(1, 1, 2, 2)
    x = truth + torch.tensor([0.1, -0.1, -0.1, 0.1]).view(1, 1, 2, 2)
    torch.testing.assert_close(snr(x, truth), expected)
    torch.testing.assert_close(snr_shifted(x, truth), torch.tensor([10 * np.log10(50.0)]).float())


@pytest.mark.parametrize(("metric", "shift"), [(snr, -1.0), (snr_shifted, 0.0)])
def test_snr_is_the_published_formula(images, metric, shift):
    """On images in [−1, 1], and on these moved to [0, 2]."""
    x, truth = images
    for found, one, other in zip(metric(x, truth), x.clamp(0, 1), truth, strict=True):
        one, other = (2 * image.double().numpy() + shift for image in (one, other))
        ratio = (other**2).sum() / ((other - one) ** 2).sum()
        assert found.item() == pytest.approx(10 * np.log10(ratio), abs=1e-4)


@pytest.mark.parametrize("metric", [snr, snr_shifted])
def test_snr_is_finite(images, metric):
    truth = images[1]
    torch.testing.assert_close(metric(truth, truth) > 130, torch.ones(3, dtype=torch.bool))
    assert metric(truth, truth).max() <= 150
    silent = torch.full((1, 1, 2, 2), 0.5 if metric is snr else 0.0)
    assert metric(silent + 0.25, silent).item() == pytest.approx(-150)
    assert metric(silent, silent).item() == pytest.approx(150)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_equals_scikit_image(images, channels):
    x, truth = (image[:, :channels] for image in images)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for found, one, other in zip(ssim(x, truth), x.clamp(0, 1), truth, strict=True):
        expected = skimage.metrics.structural_similarity(
            np.asarray(other, dtype=float),
            np.asarray(one, dtype=float),
            data_range=1,
            channel_axis=0,
            **options,
        )
        assert found.item() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(ssim(truth, truth), torch.ones(3))


def test_single_image_keeps_its_row(images):
    x, truth = (image[:1] for image in images)
    assert ssim(x, truth).shape == psnr(x, truth).shape == (1,)


def test_values_beyond_the_range_are_clamped(images):
    _, truth = images
    white = torch.ones_like(truth)
    torch.testing.assert_close(psnr(white + 3, truth), psnr(white, truth))
    torch.testing.assert_close(ssim(white + 3, truth), ssim(white, truth))


def test_lpips_grows_with_the_noise(images, monkeypatch):
    # Random features stand in for AlexNet's, which cannot be had everywhere.
    network = lpips_package.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    monkeypatch.setattr("flowprior.metrics.images._lpips_network", lambda device: network)
    x, truth = images
    found = lpips(x, truth)
    assert found.shape == (3,)
    assert found[0] < found[1] < found[2]
    assert lpips(truth, truth).abs().max() == 0


@pytest.mark.parametrize("answers", [True, False])
def test_lpips_is_none_without_its_network(images, monkeypatch, tmp_path, answers):
    def unreachable(**_):
        assert answers, "it would wait for minutes"
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))  # nothing is downloaded yet
    monkeypatch.setattr("flowprior.downloads._answers", lambda url: answers)
    monkeypatch.setattr(lpips_package, "LPIPS", unreachable)
    _lpips_network.cache_clear()
    assert lpips(*images) is None
    _lpips_network.cache_clear()


def test_lpips_input_is_what_the_network_needs(images):
    grey = images[0][:, :1]
    prepared = _for_lpips(grey)
    assert prepared.shape[1] == 3
    assert min(prepared.shape[2:]) >= 64
    assert prepared.abs().max() <= 1


def test_wrong_shapes_are_named(images):
    x, truth = images
    with pytest.raises(ValueError, match="shapes"):
        psnr(x, truth[:2])
    with pytest.raises(ValueError, match="11x11"):
        ssim(x[..., :8, :8], truth[..., :8, :8])


@pytest.mark.parametrize("metric", [psnr, ssim, lpips, snr, snr_shifted])
def test_images_of_another_range_are_refused(images, metric):
    x, truth = (image.clone() for image in images)
    truth[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    for scale, shift in ((255, 0), (1, -0.5), (2, -1)):
        with pytest.raises(ValueError, match="truth"):
            metric(scale * x + shift, scale * truth + shift)
    with pytest.raises(ValueError, match="floating point"):
        metric((255 * x).byte(), truth)
    with pytest.raises(ValueError, match="truth"):
        metric(x, truth / 0)


def test_threads_that_load_lpips_at_once_leave_stdout_as_it_was(monkeypatch):
    def slow(**_):
        time.sleep(0.2)
        raise OSError

    monkeypatch.setattr("flowprior.downloads._answers", lambda url: True)
    monkeypatch.setattr("lpips.LPIPS", slow)
    _lpips_network.cache_clear()
    before = sys.stdout
    threads = [threading.Thread(target=_lpips_network, args=("cpu",)) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)  # the second begins before the first has ended, and ends after it
    for thread in threads:
        thread.join()
    _lpips_network.cache_clear()
    assert sys.stdout is before
