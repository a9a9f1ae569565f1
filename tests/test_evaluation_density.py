"""Evaluation of flows: injective ones, distances of samples, rows without weights."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
import yaml
from torchmetrics.image.fid import FrechetInceptionDistance

import evaluate
import flowprior
from datamodules import LayerModels
from evaluation.base import Result
from evaluation.features import DigitFeatures, Features, Inception, check_features
from flowprior.flows import Glow, Trumpet, standard_normal_log_prob
from flowprior.flows.gram import half_log_det_gram, neumann_half_log_det_gram
from flowprior.metrics import DigitClassifier, frechet_distance, load_classifier, relative_error
from tests.conftest import make_perturbed_glow
from tests.entry_points import ROOT
from tests.test_evaluate import run_here
from tests.test_trumpet import SIZE, images, trumpet

DATA = {"image_size": SIZE, "num_train": 3, "num_val": 1, "num_test": 6, "n_bits": None}


TINY = {"layout": ["squeeze", "halve"], "low_steps": 1, "low_hidden_channels": 4}


class Corners(Features):
    """Two pixels of an image."""

    name = "corner_distance"
    title = "Distance of the corners"

    def __call__(self, images):
        return torch.stack([images[:, 0, 0, 0], images[:, 0, -1, -1]], 1)


class Nothing(Corners):
    """Features that are not on this machine."""

    name = "nothing"
    hint = "Get them elsewhere."

    def __call__(self, images):
        return None


CONFIG = {
    "evaluation": {
        "class_path": "evaluation.density.DensityEvaluation",
        "init_args": {
            "weights": "trumpet",
            "data": {
                "class_path": "datamodules.LayerModels",
                "init_args": {**DATA, "data_range": [-1.0, 1.0]},
            },
            "features": [
                {"class_path": f"tests.test_evaluation_density.{kind}"}
                for kind in ("Corners", "Nothing")
            ],
            "neumann_terms": 10,
            "likelihoods": 3,
            "batch_size": 4,
            "others": [
                {
                    "weights": "glow",
                    "data": {"class_path": "datamodules.LayerModels", "init_args": DATA},
                },
                {
                    "weights": "later",
                    "optional": True,
                    "data": {"class_path": "datamodules.LayerModels", "init_args": DATA},
                },
            ],
            "published": [
                {"labels": {"weights": "trumpet"}, "metrics": {"relative_error": 0.25}},
                {"labels": {"flow": "Rival"}, "metrics": {"corner_distance": 2.5}},
            ],
        },
    }
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    flowprior.save(trumpet().float(), tmp_path / "trumpet", {"training_hours": 1.5})
    flow = make_perturbed_glow(1, SIZE, dtype=torch.float32, levels=1, steps=1, coupling="affine")
    flowprior.save(flow, tmp_path / "glow")
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


class Scaled(Corners):
    """The same, scaled."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, images):
        return self.scale * super().__call__(images)


class Radius(Corners):
    """Has the name of a column of every table."""

    name = "radius"


class Unnamed(Features):
    """Has no name."""

    def __call__(self, images):
        return images.flatten(1)


def own_features(*features: tuple[str, dict]) -> list[dict]:
    path = "tests.test_evaluation_density"
    return [{"class_path": f"{path}.{kind}", "init_args": options} for kind, options in features]


@pytest.mark.parametrize(
    ("first", "other", "said"),
    [
        (
            [("Scaled", {"scale": 1.0}), ("Scaled", {"scale": 2.0})],
            [],
            "features: Scaled has a metric named 'corner_distance', as Scaled has",
        ),
        (
            [("Corners", {})],
            [("Scaled", {})],
            r"others[0].features: Scaled has a metric named 'corner_distance', as Corners has",
        ),
        ([("Radius", {})], [], "features: Radius has a metric named 'radius', as every table has"),
        ([("Unnamed", {})], [], "features: Unnamed needs a `name` and a `title`"),
    ],
)
def test_features_need_names_of_their_own(
    folder: Path, capsys: pytest.CaptureFixture, first: list, other: list, said: str
) -> None:
    config = yaml.safe_load((folder / "table.yaml").read_text())
    settings = config["evaluation"]["init_args"]
    settings |= {"features": own_features(*first), "published": []}
    settings["others"][0]["features"] = own_features(*other)
    (folder / "table.yaml").write_text(yaml.safe_dump(config))
    assert run_here(folder, "--config", "table.yaml") == 2
    assert said in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_equal_features_of_two_rows_are_one_column() -> None:
    check_features({"": [Scaled(2.0)], "others[0].": [Scaled(2.0)]}, [])
    with pytest.raises(ValueError, match=r"others\[0\].features: Scaled"):
        check_features({"": [Scaled(2.0)], "others[0].": [Scaled(3.0)]}, [])


@pytest.mark.parametrize(
    ("features", "got"),
    [
        (lambda x: x, "(3, 1, 8, 8)"),
        (lambda x: x.flatten(1).mean(1), "(3,)"),
        (lambda x: x.flatten(1)[:1], "(1, 64)"),
        (lambda x: "none", "str"),
    ],
)
def test_features_of_a_wrong_shape_are_named(monkeypatch, features, got: str) -> None:
    monkeypatch.setattr(Corners, "__call__", lambda self, images: features(images))
    message = f"features: Corners must give (B, F) of images (B, C, H, W), here (3, F), got {got}"
    with pytest.raises(ValueError, match=re.escape(message)):
        Corners().of({"test": torch.zeros(3, 1, 8, 8)})


def test_injective_flow_beside_a_bijective_one(folder: Path) -> None:
    assert run_here(folder, "--config", "table.yaml") == 0
    table = json.loads((folder / "runs/table/table.json").read_text())
    ours, glow = (row["metrics"] for row in table["rows"])
    flow = flowprior.load(folder / "trumpet")
    data = LayerModels(**DATA, data_range=(-1.0, 1.0))
    _, x = next(data.batches("test", 6))
    assert "bits_per_dim" not in ours
    assert "relative_error" not in glow
    error = relative_error(flow.project(x), x).mean().item()
    assert ours["relative_error"]["mean"] == pytest.approx(error, rel=1e-4)
    assert (ours["relative_error"]["n"], ours["relative_error"]["paper"]) == (6, 0.25)
    assert (ours["nll"]["n"], glow["nll"]["n"]) == (3, 6)
    nll = -flow.log_prob(x[:3]).mean().item()
    assert ours["nll"]["mean"] == pytest.approx(nll, rel=1e-4)
    estimates = [-flow.neumann_log_prob(x[i : i + 1], seed=i).item() for i in range(3)]
    assert ours["neumann_nll"]["mean"] == pytest.approx(np.mean(estimates), rel=1e-4)
    assert ours["neumann_bias"]["mean"] == pytest.approx(np.mean(estimates) - nll, abs=1e-2)
    assert ours["training_hours"]["mean"] == 1.5
    count = sum(p.numel() for p in flow.parameters()) / 1e6
    assert ours["parameters"]["mean"] == pytest.approx(count)
    assert ours["nothing"]["mean"] is None
    training = data.dataset("train").__getitems__([(0, i % 3) for i in range(6)])
    drawn = [torch.randn(flow.latent.shape, generator=_seeded(i)) for i in range(6)]
    for name, images_ in (("", flow.generate(torch.stack(drawn))), ("_training", training)):
        sets = (Corners()(flow.to_unit_range(y)) for y in (images_, x))
        expected = frechet_distance(*sets)
        assert ours[f"corner_distance{name}"]["mean"] == pytest.approx(expected, rel=1e-3)
    assert "corner_distance" not in {name for name, stat in glow.items() if stat["n"]}
    notes = " ".join(table["notes"])
    for words in ("weights in later", "Get them elsewhere", "flow Rival: Distance of the corners"):
        assert words in notes
    figures = {path.stem for path in (folder / "runs/table/figures").glob("*.png")}
    assert {"projections_trumpet", "samples_glow", "bits_per_dim"} <= figures
    assert "projections_glow" not in figures


class Projecting(Glow):
    """A bijective flow with one method of an injective one."""

    def project(self, x):
        return x


def test_a_projection_alone_makes_no_flow_injective(folder: Path) -> None:
    flow = Projecting(1, SIZE, levels=1, steps=1, hidden_channels=4)
    flow.initialized.fill_(True)
    flowprior.save(flow, folder / "own")
    options = ["--evaluation.weights=own", "--evaluation.others=[]"]
    options += [
        "--evaluation.data.data_range=[-0.5,0.5]",
        "--evaluation.features=[]",
        "--evaluation.published=[]",
    ]
    assert run_here(folder, "--config", "table.yaml", *options) == 0
    (row,) = json.loads((folder / "runs/table/table.json").read_text())["rows"]
    assert row["metrics"]["bits_per_dim"]["n"] == 6
    assert "relative_error" not in row["metrics"]


class Short(Trumpet):
    """An injective flow without the estimate by the Neumann series."""

    neumann_log_prob = None


def test_an_estimate_that_a_flow_does_not_have(folder: Path, capsys: pytest.CaptureFixture) -> None:
    flowprior.save(Short(1, SIZE, **TINY), folder / "own")
    assert run_here(folder, "--config", "table.yaml", "--evaluation.weights=own") == 2
    assert "evaluation.neumann_terms needs neumann_log_prob" in capsys.readouterr().err


def test_other_training_images_are_noticed_where_samples_are_compared_with_them(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    def changed() -> int:
        text = yaml.safe_dump(CONFIG).replace(f"num_train: {DATA['num_train']}", "num_train: 5")
        assert text != yaml.safe_dump(CONFIG)
        (folder / "table.yaml").write_text(text)
        return run_here(folder, "--config", "table.yaml")

    assert run_here(folder, "--config", "table.yaml") == 0
    capsys.readouterr()
    assert changed() == 2
    error = capsys.readouterr().err
    assert "flow Trumpet" in error
    assert "training" in error


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_other_settings_of_the_estimate_are_noticed(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_here(folder, "--config", "table.yaml") == 0
    assert run_here(folder, "--config", "table.yaml", "--evaluation.neumann_terms", "5") == 2
    assert "neumann_terms" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["neumann_terms", "likelihoods"])
def test_counts_must_be_positive(folder: Path, option: str, capsys: pytest.CaptureFixture) -> None:
    assert run_here(folder, "--config", "table.yaml", f"--evaluation.{option}", "0") == 2
    assert f"{option} must be at least 1" in capsys.readouterr().err


def test_missing_weights_of_a_row_that_is_not_optional(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    text = (folder / "table.yaml").read_text().replace("optional: true", "optional: false")
    (folder / "table.yaml").write_text(text)
    assert run_here(folder, "--config", "table.yaml") == 2
    assert "others[1].weights" in capsys.readouterr().err


def test_trumpet_table_names_every_published_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    parser = evaluate.make_parser()
    arguments = ["--config", "trumpet_table1_2", "--evaluation.weights", str(folder / "trumpet")]
    evaluation = parser.instantiate(parser.parse_args(arguments)).evaluation
    assert [str(one.weights) for one in evaluation.absent] == [
        f"runs/trumpet_{name}/weights" for name in ("cifar10", "celeba64", "chest")
    ]
    names = {metric.name for metric in evaluation.metrics}
    assert {"fid", "digit_distance", "fid_training"} <= names
    assert all(one.metrics.keys() <= names for one in evaluation.published)


def test_neumann_estimate_of_the_flow_is_that_of_its_generator():
    flow, x = trumpet(), images(2)
    z = flow.latents(x)
    torch.testing.assert_close(half_log_det_gram(flow._generator, z), flow.decode(z)[1])
    series = {"terms": 4, "probes": 2, "seed": 3}
    log_det = neumann_half_log_det_gram(flow._generator, z, **series)
    expected = standard_normal_log_prob(z) - log_det
    torch.testing.assert_close(flow.neumann_log_prob(x, **series), expected)
    few = flow.neumann_log_prob(x, terms=3, probes=50)
    assert (few < flow.log_prob(x)).all()  # the estimated volume is too large


def features(count: int, seed: int, size: int = 5) -> torch.Tensor:
    generator = _seeded(seed)
    mixed = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mixed + seed


def test_frechet_distance_is_that_of_scipy():
    first, second = features(40, 1), features(30, 2)
    means = [rows.mean(0).numpy() for rows in (first, second)]
    covariances = [np.cov(rows.numpy(), rowvar=False) for rows in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first[:3], second) > 0  # fewer images than features


class Pixels(torch.nn.Module):
    """Some pixels as features, for torchmetrics."""

    num_features = 6

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :6].float()


def test_frechet_distance_is_that_of_torchmetrics():
    sets = [torch.rand(50, 3, 8, 8, generator=_seeded(i)) ** (1 + i) for i in range(2)]
    metric = FrechetInceptionDistance(Pixels(), normalize=False, input_img_size=(3, 8, 8))
    metric.set_dtype(torch.float64)
    metric.update((255 * sets[0]).to(torch.uint8), real=True)
    metric.update((255 * sets[1]).to(torch.uint8), real=False)
    found = frechet_distance(*(Pixels()((255 * images_).to(torch.uint8)) for images_ in sets))
    assert found == pytest.approx(metric.compute().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("shapes", "word"), [(((3, 2), (3, 4)), "(3, 4)"), (((1, 2), (3, 2)), "at least 2")]
)
def test_wrong_features_are_named(shapes, word):
    with pytest.raises(ValueError, match="features") as error:
        frechet_distance(*map(torch.zeros, shapes))
    assert word in str(error.value)


def test_features_that_are_not_finite_give_no_distance():
    kept = {f"corner_distance_{name}": np.ones(2) for name in ("test", "sample", "training")}
    broken = {**kept, "corner_distance_sample": np.array([1.0, np.nan])}
    found = Corners().distances(
        [Result(None, n, {}, arrays) for n, arrays in enumerate((kept, broken))]
    )
    assert np.isnan(found["corner_distance"])
    assert found["corner_distance_training"] == 0
    assert Corners().distances([]) == {}


def test_inception_is_there_or_says_how_to_get_it():
    try:
        import torch_fidelity  # noqa: F401
    except ImportError:
        assert Inception()(torch.rand(2, 1, 8, 8)) is None
    assert "pip install torch-fidelity" in Inception.hint


def test_inception_does_not_wait_for_a_silent_server(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    url = SimpleNamespace(URL_INCEPTION_V3="https://example.org/net.pth")
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", url)
    asked = []
    monkeypatch.setattr("flowprior.downloads._answers", lambda url: asked.append(url))
    assert Inception()(torch.rand(2, 1, 8, 8)) is None
    assert asked == ["https://example.org/net.pth"]


def test_inception_sees_bytes_in_three_channels():
    inception = Inception()
    seen = []
    vars(inception)["_network"] = _Seen(seen)
    inception(torch.tensor([-1.0, 0.5, 2.0, 0.2]).view(1, 1, 2, 2))
    assert seen[0].dtype == torch.uint8
    assert seen[0].tolist() == [[[[0, 128], [255, 51]]] * 3]


class _Seen(torch.nn.Module):
    def __init__(self, seen: list) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append(pixels)
        return pixels.flatten(1)


def test_digit_features_ignore_a_border():
    model = load_classifier(ROOT / "weights/classifier_mnist/model.safetensors")
    x = torch.rand(3, 1, 28, 28)
    padded = torch.nn.functional.pad(x, [2] * 4)
    torch.testing.assert_close(DigitFeatures()(padded), model.features(x))
    assert model.features(x).shape == (3, 64)
    assert model(x).shape == (3, 10)
    assert (model.features(x) == 0).float().mean() < 0.9
    for shape in ((2, 3, 28, 28), (2, 1, 27, 27), (2, 1, 31, 31), (2, 1, 28, 30)):
        with pytest.raises(ValueError, match="digits must be"):
            model.features(torch.zeros(shape))


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_wrong_weights_of_the_classifier_are_one_line(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    if damage == "truncated":
        path.write_bytes((ROOT / "weights/classifier_mnist/model.safetensors").read_bytes()[:100])
    if damage == "other":
        path = ROOT / "weights/denoiser_mnist/model.safetensors"
    with pytest.raises(ValueError, match="DigitClassifier"):
        DigitFeatures(path)


def test_classifier_has_the_size_of_its_card():
    card = json.loads((ROOT / "weights/classifier_mnist/card.json").read_text())
    assert card["class_path"] == "flowprior.metrics.DigitClassifier"
    assert card["accuracy"]["test"] > 0.99
    assert sum(p.numel() for p in DigitClassifier().parameters()) < 500_000
