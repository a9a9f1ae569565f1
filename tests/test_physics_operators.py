"""Operators: adjoints, known values, references, determinism, mistakes."""

import inspect

import numpy as np
import pytest
import scipy.ndimage
import torch
from skimage.transform import radon

from flowprior import physics as physics_package
from flowprior.physics import OPERATORS, make_operator

CASES = {
    "denoising": {},
    "gaussian_blur": {"tau": 1.5},
    "gaussian_blur replicate": {"tau": 0.7, "kernel_size": 5, "padding": "replicate"},
    "gaussian_blur circular": {"tau": 1.0, "padding": "circular"},
    "mean_blur": {},
    "mean_blur reflect": {"size": 5, "padding": "reflect"},
    "box_inpainting": {"box": (5, 3)},
    "box_inpainting fraction": {"box": 0.3},
    "random_inpainting": {"kept": 0.15},
    "super_resolution": {"factor": 4},
    "super_resolution 2": {"factor": 2},
    "super_resolution bilinear": {"factor": 4, "smoothing": "bilinear"},
    "colourisation": {},
    "random_gaussian": {"measurements": 20},
    "cartesian_mri": {},
    "limited_angle_ct": {"angles": 7},
    "linearized_born": {"sources": 2, "receivers": 3, "duration": 0.15},
}
NONLINEAR = {"crosshole_tomography", "full_waveform", "phase_retrieval"}
SHAPES = [(1, 16, 16), (3, 16, 16), (1, 16, 20), (3, 20, 16), (2, 16, 20)]


def fits(name, shape):
    operator = name.split()[0]
    if operator == "colourisation":
        return shape[0] > 1
    if operator == "cartesian_mri":
        return shape[0] < 3
    if operator == "linearized_born":
        return shape[0] == 1
    return operator != "limited_angle_ct" or shape[1] == shape[2]


PAIRS = [(name, shape) for name in CASES for shape in SHAPES if fits(name, shape)]


def make(name, shape, **options):
    return make_operator(name.split()[0], shape, **{**CASES[name], **options})


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_every_operator_is_tested():
    assert {name.split()[0] for name in CASES} | NONLINEAR == set(OPERATORS)


@pytest.mark.parametrize(("name", "shape"), PAIRS)
def test_adjoint(name, shape):
    physics = make(name, shape).double()
    x = normal(2, *shape)
    ax = physics.A(x)
    y = normal(*ax.shape, seed=1)
    aty = physics.A_adjoint(y)
    assert aty.shape == x.shape
    gap = (ax * y).sum() - (x * aty).sum()
    assert abs(gap) <= 1e-10 * ax.norm() * y.norm()
    assert ax.norm() > 0


@pytest.mark.parametrize(("name", "shape"), PAIRS)
def test_gradient_is_the_adjoint(name, shape):
    physics = make(name, shape).double()
    x = normal(2, *shape).requires_grad_()
    ax = physics(x)
    y = normal(*ax.shape, seed=1)
    (gradient,) = torch.autograd.grad((ax * y).sum(), x)
    assert torch.allclose(gradient, physics.A_adjoint(y), rtol=1e-10, atol=1e-10)
    y.requires_grad_()
    (back,) = torch.autograd.grad((physics.A_adjoint(y) * x.detach()).sum(), y)
    assert torch.allclose(back, physics.A(x.detach()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "shape"), PAIRS)
def test_float32_after_float64_and_no_noise(name, shape):
    physics = make(name, shape)
    x = normal(2, *shape, dtype=torch.float32)
    y = physics(x)
    assert y.dtype == physics.A_adjoint(y).dtype == torch.float32
    assert torch.equal(y, physics.A(x))
    assert torch.equal(y, physics(x))
    exact = physics.double().A(x.double())
    assert exact.dtype == physics.A_adjoint(exact).dtype == torch.float64
    assert torch.allclose(exact.float(), y, atol=1e-4)
    assert physics.float().A_adjoint(y).dtype == torch.float32


@pytest.mark.parametrize(("name", "shape"), PAIRS)
def test_images_do_not_mix(name, shape):
    physics = make(name, shape).double()
    x = normal(3, *shape)
    y = physics.A(x)
    for index in range(3):
        assert torch.allclose(physics.A(x[index : index + 1])[0], y[index], rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize(("name", "shape"), [pair for pair in PAIRS if pair[1][0] != 2])
@pytest.mark.parametrize("count", [5, 16, 17, 33])
def test_rows_do_not_depend_on_the_batch(name, shape, count):
    physics = make(name, shape)

    def results(x):
        x = x.clone().requires_grad_()
        y = physics.A(x)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        return y.detach(), gradient, physics.A_adjoint(y.detach())

    x = normal(count, *shape, dtype=torch.float32)
    # Both choose their convolutions by the size of the batch.
    with torch.backends.mkldnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
        together = results(x)
        apart = [torch.cat(rows) for rows in zip(*map(results, x.split(1)), strict=True)]
    assert all(torch.equal(*pair) for pair in zip(together, apart, strict=True))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("denoising", (3, 16, 20), (3, 16, 20)),
        ("gaussian_blur", (3, 16, 20), (3, 16, 20)),
        ("mean_blur", (1, 16, 20), (1, 16, 20)),
        ("box_inpainting", (3, 16, 20), (3, 16, 20)),
        ("random_inpainting", (3, 16, 20), (3, 16, 20)),
        ("super_resolution", (3, 16, 20), (3, 4, 5)),
        ("colourisation", (3, 16, 20), (1, 16, 20)),
        ("random_gaussian", (3, 16, 20), (20,)),
        ("cartesian_mri", (1, 16, 20), (2, 16, 20)),
        ("limited_angle_ct", (3, 16, 16), (3, 23, 7)),
    ],
)
def test_shape_of_the_measurements(name, shape, expected):
    assert make(name, shape).A(normal(2, *shape, dtype=torch.float32)).shape == (2, *expected)


@pytest.mark.parametrize(
    ("padding", "scipy_mode"),
    [("reflect", "mirror"), ("replicate", "nearest"), ("circular", "wrap"), ("zeros", "constant")],
)
def test_gaussian_blur_equals_scipy(padding, scipy_mode):
    x = normal(1, 1, 32, 40)
    physics = make_operator(
        "gaussian_blur", (1, 32, 40), tau=3.0, padding=padding, dtype=torch.float64
    )
    assert physics.filter.shape[-2:] == (25, 25)
    expected = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), 3.0, mode=scipy_mode, radius=12)
    assert np.abs(physics.A(x)[0, 0].numpy() - expected).max() < 1e-14


@pytest.mark.parametrize("size", [3, 5])
def test_mean_blur_equals_scipy_and_darkens_only_borders(size):
    x = normal(1, 1, 12, 9)
    physics = make_operator("mean_blur", (1, 12, 9), size=size, dtype=torch.float64)
    expected = scipy.ndimage.uniform_filter(x[0, 0].numpy(), size, mode="constant")
    assert np.abs(physics.A(x)[0, 0].numpy() - expected).max() < 1e-14
    y = physics.A(torch.full((1, 1, 12, 9), 0.7, dtype=torch.float64))
    edge = size // 2
    assert torch.allclose(y[..., edge : 12 - edge, edge : 9 - edge], torch.tensor(0.7).double())
    assert y[0, 0, 0, 0] == pytest.approx(0.7 * ((size // 2 + 1) / size) ** 2)


@pytest.mark.parametrize(
    "name", ["gaussian_blur", "mean_blur reflect", "super_resolution", "super_resolution bilinear"]
)
def test_a_constant_stays(name):
    y = make(name, (3, 16, 20)).A(torch.full((1, 3, 16, 20), 0.3))
    assert torch.allclose(y, torch.tensor(0.3))


def test_super_resolution_takes_block_means():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    y = make_operator("super_resolution", (1, 4, 4), factor=2).A(x)
    assert y.tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]


def test_bilinear_super_resolution_weighs_by_distance():
    """Pixels of the middle of a large image: weights fall linearly to 0 at a distance of 4."""
    x = normal(1, 1, 32, 32)
    y = make_operator("super_resolution", (1, 32, 32), smoothing="bilinear").A(x)
    distance = torch.arange(8, dtype=torch.float64) - 3.5
    weights = (1 - distance.abs() / 4) / 4
    for row, column in ((2, 3), (5, 4)):
        window = x[0, 0, 4 * row - 2 : 4 * row + 6, 4 * column - 2 : 4 * column + 6]
        assert torch.allclose(y[0, 0, row, column], weights @ window @ weights)


def test_colourisation_takes_the_mean():
    x = normal(2, 3, 4, 5)
    y = make_operator("colourisation", (3, 4, 5)).A(x)
    assert torch.allclose(y, x.mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("name", "shape"), [("super_resolution", (3, 8, 12)), ("colourisation", (3, 8, 12))]
)
def test_closed_forms(name, shape):
    physics = make(name, shape).double()
    z = normal(2, *shape)
    y = normal(*physics.A(z).shape, seed=1)
    x = physics.prox_l2(z, y, 2.0)
    assert torch.allclose(2 * physics.A_adjoint(physics.A(x) - y), z - x)
    x = physics.A_dagger(y)
    assert torch.allclose(physics.A(x), y)
    x = physics.prox_l2(None, y, 2.0)
    assert torch.allclose(2 * physics.A_adjoint(physics.A(x) - y), -x)


def test_box_inpainting_hides_the_box():
    mask = make_operator("box_inpainting", (3, 32, 32), box=(13, 13)).mask
    assert mask.shape == (1, 3, 32, 32)
    hidden = torch.zeros(32, 32)
    hidden[9:22, 9:22] = 1
    assert torch.equal(mask, (1 - hidden).expand_as(mask))
    mask = make_operator("box_inpainting", (1, 8, 10), box=(2, 4), centre=(1, 8)).mask[0, 0]
    assert torch.equal((mask == 0).nonzero().amin(0), torch.tensor([0, 6]))
    assert torch.equal((mask == 0).nonzero().amax(0), torch.tensor([1, 9]))
    mask = make_operator("box_inpainting", (1, 8, 10), box=0.5).mask
    assert (mask == 0).sum() == 4 * 5


def test_random_inpainting_keeps_exactly_the_fraction_in_all_channels():
    mask = make_operator("random_inpainting", (3, 20, 30), kept=0.15, seed=4).mask[0]
    assert mask.sum(dim=(1, 2)).tolist() == [90, 90, 90]
    assert torch.equal(mask[0], mask[2])


def test_random_gaussian_has_unit_columns_in_expectation():
    matrix = make_operator("random_gaussian", (3, 16, 16), measurements=250).matrix
    assert matrix.shape == (250, 768)
    assert abs(matrix.mean()) < 5 * 250**-0.5 * matrix.numel() ** -0.5
    assert matrix.square().sum(0).mean() == pytest.approx(1, abs=0.02)


def test_phase_retrieval_is_the_squared_modulus():
    physics = make_operator("phase_retrieval", (2, 8, 6), measurements=500).double()
    assert {buffer.dtype for buffer in physics.buffers()} == {torch.float64}
    x = normal(3, 2, 8, 6).requires_grad_()
    rows = physics.real.matrix + 1j * physics.imaginary.matrix
    inner = torch.einsum("mn,bn->bm", rows, x.flatten(1).to(rows))
    y = physics.A(x)
    torch.testing.assert_close(y, inner.abs().square())
    assert torch.equal(physics.A(-x), y)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    expected = 2 * torch.einsum("mn,bm->bn", rows.conj(), inner).real  # Wirtinger's, by hand
    torch.testing.assert_close(gradient.flatten(1), expected)


def test_phase_retrieval_has_intensities_of_the_mean_square():
    physics = make_operator("phase_retrieval", (1, 16, 16), measurements=4000, seed=1)
    x = normal(1, 1, 16, 16, dtype=torch.float32)
    share = physics.A(x)[0] / x.square().mean()
    # Exponential with mean 1 and standard deviation 1.
    assert share.mean() == pytest.approx(1, abs=5 / 4000**0.5)
    assert share.std() == pytest.approx(1, abs=0.1)
    assert not torch.equal(physics.real.matrix[0], physics.imaginary.matrix[0])


@pytest.mark.parametrize("channels", [1, 2])
def test_cartesian_mri_is_a_masked_orthonormal_dft(channels):
    shape = (channels, 16, 20)
    x = normal(2, *shape)
    physics = make_operator("cartesian_mri", shape, acceleration=4, centre_fraction=0.1).double()
    image = x[:, 0] + (1j * x[:, 1] if channels == 2 else 0)
    space = np.fft.fftshift(
        np.fft.fft2(np.fft.ifftshift(image, axes=(1, 2)), norm="ortho"), axes=(1, 2)
    )
    mask = physics.mask[0, 0].numpy()
    y = physics.A(x).numpy()
    assert np.abs(y[:, 0] + 1j * y[:, 1] - space * mask).max() < 1e-12
    assert (mask == mask[0]).all()
    assert mask[0].sum() == 5
    assert mask[0, 9:11].all()
    full = make_operator("cartesian_mri", shape, acceleration=1).double()
    assert torch.allclose(full.A_adjoint(full.A(x)), x)


@pytest.mark.parametrize("side", [16, 17])
def test_limited_angle_ct_equals_skimage(side):
    image = scipy.ndimage.gaussian_filter(normal(side, side).numpy(), 2, mode="constant")
    physics = make_operator(
        "limited_angle_ct", (1, side, side), angles=5, first=0, last=120, dtype=torch.float64
    )
    y = physics.A(torch.tensor(image)[None, None])[0, 0].numpy()
    expected = radon(image, np.linspace(0, 120, 5), circle=False)
    assert y.shape == expected.shape
    assert np.abs(y - expected).max() < 1e-12


def test_limited_angle_ct_angles():
    physics = make_operator("limited_angle_ct", (1, 8, 8))
    assert torch.allclose(physics.angles, torch.linspace(30, 150, 30))


@pytest.mark.parametrize("name", ["random_inpainting", "random_gaussian", "cartesian_mri"])
def test_seeds(name):
    def buffer(seed):
        torch.rand(1)
        physics = make(name, (1, 32, 32), seed=seed)
        return physics.matrix if name == "random_gaussian" else physics.mask

    state = torch.get_rng_state()
    make(name, (1, 32, 32), seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(buffer(7), buffer(7))
    assert not torch.equal(buffer(7), buffer(8))


@pytest.mark.parametrize("name", CASES)
def test_buffers_move(name):
    shape = next(s for s in ((2, 16, 16), (1, 16, 16)) if fits(name, s))
    physics = make(name, shape).to("meta")
    assert all(buffer.device.type == "meta" for buffer in physics.buffers())


@pytest.mark.parametrize(
    ("name", "shape", "options", "option"),
    [
        ("denoising", (8, 8), {}, "image_shape"),
        ("denoising", (0, 8, 8), {}, "image_shape"),
        ("gaussian_blur", (1, 8, 8), {"tau": 0}, "tau"),
        ("gaussian_blur", (1, 8, 8), {"tau": float("nan")}, "tau"),
        ("gaussian_blur", (1, 8, 8), {"tau": "3"}, "tau"),
        ("gaussian_blur", (1, 8, 8), {"kernel_size": 4}, "kernel_size"),
        ("gaussian_blur", (1, 8, 8), {"tau": 3}, "kernel"),
        ("mean_blur", (1, 8, 8), {"size": 2}, "size"),
        ("mean_blur", (1, 8, 8), {"size": 3.0}, "size"),
        ("mean_blur", (1, 8, 8), {"size": True}, "size"),
        ("mean_blur", (1, 8, 8), {"padding": "mirror"}, "padding"),
        ("box_inpainting", (1, 8, 8), {"box": 1.5}, "box"),
        ("box_inpainting", (1, 8, 8), {"box": (9, 2)}, "box"),
        ("box_inpainting", (1, 8, 8), {"box": (2, 2, 2)}, "box must be two"),
        ("box_inpainting", (1, 8, 8), {"box": (2, 2.5)}, "box must be an integer"),
        ("box_inpainting", (1, 8, 8), {"box": (2, 2), "centre": 4}, "centre must be two"),
        ("box_inpainting", (1, 8, 8), {"box": (4, 4), "centre": (1, 4)}, "centre"),
        ("random_inpainting", (1, 8, 8), {"kept": 15}, "kept"),
        ("random_inpainting", (1, 8, 8), {"seed": -1}, "seed"),
        ("random_inpainting", (1, 8, 8), {"seed": 0.5}, "seed"),
        ("super_resolution", (1, 8, 9), {}, "factor"),
        ("super_resolution", (1, 8, 8), {"factor": 0}, "factor"),
        ("colourisation", (1, 8, 8), {}, "channels"),
        ("random_gaussian", (1, 8, 8), {"measurements": 0}, "measurements"),
        ("random_gaussian", (1, 8, 8), {"measurements": 2.5}, "measurements"),
        ("phase_retrieval", (1, 8, 8), {"measurements": 0}, "measurements"),
        ("phase_retrieval", (1, 8, 8), {"seed": -1}, "seed"),
        ("cartesian_mri", (3, 8, 8), {}, "channels"),
        ("cartesian_mri", (1, 8, 8), {"acceleration": 0.5}, "acceleration"),
        ("cartesian_mri", (1, 8, 8), {"centre_fraction": 0.9}, "centre_fraction"),
        ("limited_angle_ct", (1, 8, 9), {}, "square"),
        ("limited_angle_ct", (1, 8, 8), {"angles": 0}, "angles"),
        ("limited_angle_ct", (1, 8, 8), {"first": 90, "last": 30}, "last"),
        ("limited_angle_ct", (1, 8, 8), {"first": "30"}, "first"),
        ("crosshole_tomography", (1, 8, 8), {"sources": 9}, "sources"),
        ("mean_blur", (1, 8, 8), {"width": 3}, "width"),
    ],
)
def test_mistakes(name, shape, options, option):
    with pytest.raises(ValueError, match=rf"^operator {name}[^\n]*{option}[^\n]*$"):
        make_operator(name, shape, **options)


@pytest.mark.parametrize(
    ("name", "shape", "other"),
    [
        ("random_gaussian", (1, 8, 8), (3, 8, 8)),
        ("phase_retrieval", (1, 8, 8), (3, 8, 8)),
        ("colourisation", (3, 8, 8), (1, 8, 8)),
        ("cartesian_mri", (1, 8, 8), (2, 8, 8)),
        ("limited_angle_ct", (1, 8, 8), (1, 9, 9)),
    ],
)
def test_images_of_another_shape(name, shape, other):
    with pytest.raises(ValueError, match=r"got|does not match"):
        make_operator(name, shape).A(torch.zeros(2, *other))


def test_names_of_the_package():
    assert all(getattr(physics_package, name) is not None for name in physics_package.__all__)
    assert set(OPERATORS) - {"crosshole_tomography"} < set(physics_package.__all__)
    with pytest.raises(AttributeError, match="sharpen"):
        _ = physics_package.sharpen


def test_every_public_name_is_what_it_says_after_all_were_imported():
    found = [getattr(physics_package, name) for name in physics_package.__all__]
    assert not any(map(inspect.ismodule, found))
