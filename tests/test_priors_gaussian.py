"""The normal distribution with the moments of examples, against independent ones."""

import copy
import pickle

import pytest
import torch
from scipy.fft import dctn

from datamodules import LayerModels
from evaluation.priors import FittedGaussian, PriorOfData
from evaluation.sources import PriorSource
from flowprior.identity import identity
from flowprior.inversion import MAP, invert
from flowprior.physics import Gaussian, random_gaussian
from flowprior.posterior import FullGaussian, Variational, summarise
from flowprior.priors import GaussianPrior
from tests.exact_posterior import exact_posterior
from tests.inversion_tables import DATA, noise, solver, table

SHAPE = (2, 5, 4)
SIZE = 40
KINDS = (False, True)


def examples(count=200, shape=SHAPE):
    """Images whose pixels and channels go together."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, *shape, generator=generator, dtype=torch.float64)
    return (x + x.roll(1, 3) + x.flip(1)) / 3


def root_of(prior):
    """Σ^½, (n, n)."""
    size = prior.latent.size
    unit = torch.eye(size, dtype=torch.float64).view(size, *prior.image_shape)
    return (prior.generate(unit) - prior.generate(torch.zeros_like(unit[:1]))).flatten(1)


@pytest.mark.parametrize("stationary", KINDS)
@pytest.mark.parametrize("rows", [1, 5, 17, 33])
def test_encode_is_the_inverse_of_decode_and_densities_are_those_of_torch(stationary, rows):
    prior, x = GaussianPrior(examples(), stationary), examples()[:rows]
    z, log_det = prior.encode(x)
    back, inverse = prior.decode(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det, -inverse)
    covariance = root_of(prior) @ root_of(prior).T
    mean = prior.generate(torch.zeros(1, *SHAPE).double()).flatten()
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    torch.testing.assert_close(prior.log_prob(x), normal.log_prob(x.flatten(1)))


def test_of_known_moments():
    rows = examples().flatten(1)
    prior = GaussianPrior.from_moments(rows.mean(0).view(SHAPE), rows.T.cov())
    same = GaussianPrior(examples())
    x = examples()[:5]
    torch.testing.assert_close(prior.log_prob(x), same.log_prob(x))
    torch.testing.assert_close(prior.generate(x), same.generate(x))
    again = GaussianPrior.from_moments(rows.mean(0).view(SHAPE), rows.T.cov())
    other = GaussianPrior.from_moments(rows.mean(0).view(SHAPE), 2 * rows.T.cov())
    assert identity(prior) == identity(again) != identity(other)
    assert torch.equal(copy.deepcopy(prior).generate(x), prior.generate(x))


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (torch.zeros(4), torch.eye(4), r"mean must be finite numbers \(C, H, W\).*shape \(4,\)"),
        (torch.zeros(1, 2, 2).int(), torch.eye(4), r"mean must be .* got torch.int32"),
        (torch.zeros(1, 2, 2), torch.eye(3), r"covariance must be finite numbers \(4, 4\)"),
        (torch.zeros(1, 2, 2), torch.eye(4) / 0, "covariance must be finite"),
        (torch.zeros(1, 1, 2), torch.tensor([[1.0, 2], [0, 1]]), "covariance must be symmetric"),
        (torch.zeros(1, 1, 2), torch.tensor([[1.0, 2], [2, 1]]), "no negative .*, got -1"),
        ([0.5], torch.eye(1), "mean must be a tensor"),
    ],
)
def test_mistakes_in_known_moments(mean, covariance, message):
    with pytest.raises(ValueError, match=message):
        GaussianPrior.from_moments(mean, covariance)


def test_moments_of_all_pairs_of_pixels():
    prior = GaussianPrior(examples(), least_deviation=1e-9)
    rows = examples().flatten(1)
    root = root_of(prior)
    torch.testing.assert_close(root, root.T)
    torch.testing.assert_close(root @ root, rows.T.cov())
    torch.testing.assert_close(prior.mean.flatten(), rows.mean(0))


def test_a_stationary_one_has_the_mean_power_of_the_cosine_transform():
    x = examples(shape=(1, 5, 4))
    prior = GaussianPrior(x, stationary=True)
    spectra = dctn((x - x.mean()).numpy(), axes=(2, 3), norm="ortho")
    filtered = torch.from_numpy((spectra**2).mean(0) ** 0.5)
    z = torch.randn(3, 1, 5, 4, dtype=torch.float64)
    expected = torch.from_numpy(dctn(z.numpy(), axes=(2, 3), norm="ortho")) * filtered
    found = dctn((prior.generate(z) - x.mean()).numpy(), axes=(2, 3), norm="ortho")
    torch.testing.assert_close(torch.from_numpy(found), expected)


def test_channels_go_together_in_a_stationary_one():
    x = examples(5000)
    x[:, 1] = (x[:, 1] + 2 * x[:, 0]) / 3
    prior = GaussianPrior(x, stationary=True)
    drawn = prior.sample(5000, generator=torch.Generator().manual_seed(0))

    def of_pixels(images):
        return images.movedim(1, 3).flatten(0, 2).T.corrcoef()[0, 1]

    assert of_pixels(x) > 0.7
    assert abs(of_pixels(drawn) - of_pixels(x)) < 0.02


def test_directions_without_variance_have_the_least_deviation():
    x = examples()
    x[:, :, 0] = 0.25
    x[:, :, 0] += 1e-12 * examples()[:, :, 0]
    prior = GaussianPrior(x, least_deviation=0.01)
    drawn = prior.sample(2000)[:, :, 0]
    assert abs(drawn.mean() - 0.25) < 1e-3
    assert abs(drawn.std() - 0.01) < 1e-3


@pytest.mark.parametrize("stationary", KINDS)
@pytest.mark.parametrize("rows", [1, 5, 17, 33])
def test_map_is_the_posterior_mean_of_a_linear_operator(stationary, rows):
    prior = GaussianPrior(examples(), stationary)
    truth, sigma = examples(300)[-rows:], 0.05
    physics = random_gaussian(SHAPE, measurements=15).double()
    y = Gaussian(sigma).add(physics.A(truth), seed=0, indices=range(rows))
    found = invert(prior, physics, y, sigma=sigma, solver=MAP(), iterations=200)
    unit = torch.eye(SIZE, dtype=torch.float64).view(SIZE, *SHAPE)
    matrix = physics.A(unit).flatten(1).T @ root_of(prior)
    offset = physics.A(prior.generate(torch.zeros(1, *SHAPE).double())).flatten(1)
    latents = exact_posterior(matrix, y.flatten(1) - offset, sigma, SHAPE, mean=0.0, scale=1.0)
    torch.testing.assert_close(found.x, prior.generate(latents.means), atol=1e-5, rtol=0)
    start = prior.generate(torch.zeros(1, *SHAPE).double())
    assert (found.x - truth).norm() < 0.9 * (start - truth).norm()


def test_posteriors_take_it():
    prior = GaussianPrior(examples(500))
    physics = random_gaussian(SHAPE, measurements=30).double()
    y = Gaussian(0.05).add(physics.A(examples(500)[:2]), seed=0, indices=range(2))
    fitted = Variational(FullGaussian(), draws=16)
    found = invert(prior, physics, y, sigma=0.05, solver=fitted, iterations=800)
    unit = torch.eye(SIZE, dtype=torch.float64).view(SIZE, *SHAPE)
    matrix = physics.A(unit).flatten(1).T
    covariance = root_of(prior) @ root_of(prior)
    exact = (covariance.inverse() + matrix.T @ matrix / 0.05**2).inverse().diagonal().sqrt()
    deviation = summarise(found.posterior, 1000).deviation.flatten(1)
    assert (deviation / exact - 1).abs().mean() < 0.1


def test_its_identity_is_that_of_the_examples_whatever_the_machine_rounds():
    prior, other = GaussianPrior(examples()), GaussianPrior(examples())
    other.axes += 1e-15
    assert identity(prior) == identity(other)
    prior.temperature = 2.0  # of a subclass, say
    assert identity(prior) != identity(other)
    assert identity(other) != identity(GaussianPrior(examples() / 2))
    assert identity(prior) != identity(GaussianPrior(examples(), stationary=True))
    assert identity(prior) != identity(GaussianPrior(examples(), least_deviation=0.1))


@pytest.mark.parametrize("stationary", KINDS)
def test_copies_pickles_and_precisions(stationary):
    prior = GaussianPrior(examples().float(), stationary)
    x = examples()[:3]
    expected = prior.log_prob(x.float())
    for other in (copy.deepcopy(prior), pickle.loads(pickle.dumps(prior))):
        torch.testing.assert_close(other.log_prob(x.float()), expected)
    assert prior.generate(torch.zeros(1, *SHAPE)).dtype == torch.float32
    torch.testing.assert_close(prior.double().log_prob(x).float(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": examples()[:40]}, "more than the 40 entries .* got 40: .* stationary=True"),
        ({"images": torch.zeros(2, 1, 65, 64)}, "4160 entries, expected at most 4096"),
        (
            {"images": examples()[:1], "stationary": True},
            "one for each of 2 channels, got 1",
        ),
        ({"images": examples() - 0.5}, "in \\[0, 1\\], got values from -0.4"),
        ({"images": torch.zeros(5, 1, 0, 8), "stationary": True}, "not be empty"),
        ({"images": examples().half()}, "float32 or float64, got torch.float16"),
        ({"images": examples()[0]}, r"images must be finite .* got torch.float64 of shape"),
        ({"images": examples() / 0}, "images must be finite"),
        ({"images": examples() > 0.5}, "images must be finite .* got torch.bool"),
        ({"images": examples(), "least_deviation": 0.0}, "least_deviation must be a finite number"),
        ({"images": 3}, "images must be a tensor"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianPrior(**options)


def test_images_of_one_entry():
    x = torch.rand(9, 1, 1, 1)
    prior = GaussianPrior(x)
    torch.testing.assert_close(prior.deviations[0], x.std())


def test_images_of_another_shape_and_conditions_are_refused():
    prior = GaussianPrior(examples())
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2, 5, 4\), got \(1, 2, 4, 5\)"):
        prior.log_prob(torch.zeros(1, 2, 4, 5))
    with pytest.raises(ValueError, match="takes no condition"):
        prior.generate(torch.zeros(1, *SHAPE), condition=torch.zeros(1, 2))


def test_that_of_a_data_set_has_its_training_images():
    data = LayerModels(image_size=16, num_train=300, num_val=2, num_test=2)
    prior = FittedGaussian(images=1000).fit(data)
    _, images = next(data.batches("train", 300, dequantized=False))
    unit = (images - data.data_range[0]) / (data.data_range[1] - data.data_range[0])
    torch.testing.assert_close(prior.mean, unit.mean(0, keepdim=True))


def test_in_a_table_its_rows_are_better_than_the_data(tmp_path):
    named = {
        "class_path": "evaluation.priors.FittedGaussian",
        "init_args": {"images": 64, "stationary": True},
    }
    settings = {
        "title": "Denoising",
        "priors": {"gaussian": named},
        "data": DATA,
        "images": 5,
        "iterations": 30,
        "start": "constant",
        "batch_size": 5,
        "methods": {"MAP": {"solver": solver()}},
        "experiments": [{"labels": {}, "operator": "denoising", "noise": noise(0.2)}],
    }
    rows = table(tmp_path, "denoising", settings)
    quality = {row["labels"]["method"]: row["metrics"]["psnr"]["mean"] for row in rows}
    assert quality["MAP"] > quality["data"] + 3


def test_observations_have_no_training_images():
    with pytest.raises(ValueError, match=r"priors\.gaussian\.data: with observations, name the"):
        PriorSource({"gaussian": FittedGaussian()})
    data = LayerModels(image_size=16, num_train=300, num_val=2, num_test=2)
    prior = PriorSource({"gaussian": FittedGaussian(data=data)}).load("gaussian")
    assert prior.image_shape == (1, 16, 16)


class Nothing(PriorOfData):
    def fit(self, data):
        return None


def test_what_makes_a_prior_must_make_one():
    data = LayerModels(image_size=16, num_train=300, num_val=2, num_test=2)
    with pytest.raises(ValueError, match=r"priors\.own: fit of Nothing must give .*, got NoneType"):
        PriorSource({"own": Nothing()}, data=data).load("own")
