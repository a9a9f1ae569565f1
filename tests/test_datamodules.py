"""Dequantisation, global batches, exact resume and layer models."""

from itertools import chain, islice

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.callbacks import Callback
from torch.utils.data import default_convert

from datamodules import ImageDataModule, LayerModels
from datamodules.batches import GlobalBatchSampler, ResumableLoader
from datamodules.dequantize import ArrayImages, DequantizedImages, dequantize, quantize
from datamodules.errors import ImageError
from datamodules.layer_models import (
    LAYER_STD,
    LAYER_VALUES,
    MAX_SURFACES,
    LayerModelImages,
    _fill,
    _surfaces,
)

GOLDEN_MEAN = 0.43701774
BYTES = np.arange(256, dtype=np.uint8)


def small(**options):
    return LayerModels(**{"image_size": 8, "num_train": 20, "num_val": 7, "num_test": 5} | options)


def flat(lists):
    return list(chain.from_iterable(lists))


# Dequantisation


def constant(x, noise):
    return np.full(x.shape, noise, np.uint16)


@pytest.mark.parametrize("n_bits", range(1, 9))
def test_levels_of_bytes_are_their_leading_bits(n_bits):
    for pixels in (BYTES, BYTES.astype(np.float32) / 255):
        np.testing.assert_array_equal(quantize(pixels, n_bits), BYTES >> (8 - n_bits))


@pytest.mark.parametrize("n_bits", [1, 5, 8, 16])
@pytest.mark.parametrize("noise", [0, 2**15, 2**16 - 1])
def test_result_lies_in_the_bin_of_its_level(n_bits, noise):
    x = np.linspace(0, 1, 1001, dtype=np.float32)
    level = np.minimum(np.floor(x.astype(float) * 2**n_bits), 2**n_bits - 1)
    scaled = dequantize(x, n_bits, constant(x, noise), (0.0, 1.0)).astype(float) * 2**n_bits
    np.testing.assert_array_equal(np.floor(scaled), level)
    if noise != 2**16 - 1:
        np.testing.assert_array_equal(scaled, level + noise / 2**16)


@settings(max_examples=100, deadline=None)
@given(
    n_bits=st.integers(1, 16),
    low=st.floats(-300, 299, width=32),
    width=st.floats(0.125, 300, width=32),
    noise=st.sampled_from([0, 2**16 - 1]),
)
def test_result_stays_strictly_below_the_upper_end(n_bits, low, width, noise):
    x = np.array([0.0, 0.3, 1 - 2**-24, 1.0], dtype=np.float32)
    result = dequantize(x, n_bits, constant(x, noise), (low, low + width))
    assert result.dtype == np.float32
    assert (result >= np.float32(low)).all()
    assert (result < np.float32(low + width)).all()


def test_without_bits_the_image_is_only_mapped():
    for x in (np.array([0.0, 0.2, 1.0], np.float32), np.array([0, 51, 255], np.uint8)):
        mapped = dequantize(x, None, None, (-1.0, 1.0))
        np.testing.assert_allclose(mapped, [-1.0, -0.6, 1.0], rtol=1e-6)


def zeros(number, channels, size):
    return ArrayImages(np.zeros((number, channels, size, size), np.float32))


def test_noise_is_uniform():
    images = DequantizedImages(zeros(4, 3, 64), "train", n_bits=1, data_range=(0, 2))
    noise = images.__getitems__([(0, i) for i in range(4)]).double()
    error = noise.numel() ** -0.5
    assert noise.mean().item() == pytest.approx(1 / 2, abs=5 * error)
    assert noise.var().item() == pytest.approx(1 / 12, abs=5 * error)


def test_noise_depends_on_seed_split_epoch_and_index_only():
    def noise(seed=0, split="train", key=(0, 0)):
        return DequantizedImages(zeros(9, 1, 4), split, seed=seed)[key]

    assert noise().equal(noise())
    others = [
        noise(seed=1),
        noise(split="val"),
        noise(key=(1, 0)),
        noise(key=(0, 1)),
        noise(key=(1, 1)),
    ]
    for i, one in enumerate([noise(), *others]):
        assert all((one != other).any() for other in others[i:])


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(6)), cut=st.integers(1, 5), epoch=st.integers(0, 2**40))
def test_images_do_not_depend_on_the_batch_they_come_in(order, cut, epoch):
    data = small().dataset("train")
    keys = [(epoch, i) for i in order]
    parts = torch.cat([data.__getitems__(keys[:cut]), data.__getitems__(keys[cut:])])
    assert parts.equal(torch.stack([data[key] for key in keys]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), -0.01, 1.01])
def test_bad_pixel_is_named(bad):
    images = np.full((3, 1, 4, 4), 0.5, np.float32)
    images[1, 0, 2, 2] = bad
    data = DequantizedImages(ArrayImages(images), "holdout")
    with pytest.raises(ImageError, match="dataset 'holdout', image 1: "):
        data.__getitems__([(0, 0), (0, 1), (0, 2)])
    assert data[(0, 0)].isfinite().all()


def test_images_that_may_overshoot():
    class Overshooting(ArrayImages):
        overshoots = True

    images = np.linspace(-1, 2, 64, dtype=np.float32).reshape(4, 1, 4, 4)
    found = DequantizedImages(Overshooting(images), "train", None, (-0.5, 0.5))
    np.testing.assert_allclose(found.__getitems__([(0, i) for i in range(4)]), images - 0.5)
    np.testing.assert_array_equal(Overshooting(images)[3], images[3])
    with pytest.raises(ImageError, match="n_bits=5, expected null"):
        DequantizedImages(Overshooting(images), "train", 5)[(0, 0)]
    for bad in (np.nan, np.inf):
        wrong = images.copy()
        wrong[2, 0, 1, 1] = bad
        with pytest.raises(ImageError, match="image 2: expected finite values, got"):
            DequantizedImages(Overshooting(wrong), "train", None)[(0, 2)]


@pytest.mark.parametrize(("kind", "n_bits"), [(np.int64, 8), (np.uint8, 9)])
def test_images_that_do_not_have_the_bits_are_refused(kind, n_bits):
    source = ArrayImages(BYTES.reshape(1, 1, 16, 16).astype(kind))
    with pytest.raises(ImageError, match="dataset 'train', image 0"):
        DequantizedImages(source, "train", n_bits)[(0, 0)]


# Global batches


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("position", [0, 2, 5])
def test_union_over_processes_is_the_global_batch(world_size, position):
    def batches(rank, size):
        sampler = GlobalBatchSampler(37, 8, seed=3, rank=rank, world_size=size)
        sampler.position = position
        assert len(sampler) == 4
        return list(sampler)

    together = zip(*(batches(rank, world_size) for rank in range(world_size)), strict=True)
    assert [flat(parts) for parts in together] == batches(0, 1)


def test_training_order_is_a_new_permutation_in_each_epoch():
    sampler = GlobalBatchSampler(40, 8, seed=3)
    epochs = []
    for epoch in range(3):
        sampler.position = 5 * epoch
        keys = flat(sampler)
        assert {e for e, _ in keys} == {epoch}
        epochs.append([i for _, i in keys])
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(40)]}) == 4
    assert list(GlobalBatchSampler(40, 8, seed=4)) != list(GlobalBatchSampler(40, 8, seed=3))


@settings(max_examples=200, deadline=None)
@given(num=st.integers(1, 80), world_size=st.integers(1, 8), per_process=st.integers(1, 9))
def test_evaluation_covers_each_image_once(num, world_size, per_process):
    samplers = [
        GlobalBatchSampler(num, per_process * world_size, 0, rank, world_size, False)
        for rank in range(world_size)
    ]
    shares = [list(sampler) for sampler in samplers]
    assert [len(share) for share in shares] == [len(sampler) for sampler in samplers]
    assert flat(flat(shares)) == [(0, i) for i in range(num)]
    sizes = [len(flat(share)) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert all(1 <= len(batch) <= per_process for share in shares for batch in share)
    if per_process > 1 and num >= world_size:
        assert len({len(share) for share in shares}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 6, "world_size": 4}, "data.batch_size=6: .*multiple of the 4 processes"),
        ({"batch_size": 0}, "data.batch_size=0: .*positive multiple"),
        ({"batch_size": 21}, "data.batch_size=21: .*at most 20"),
    ],
)
def test_impossible_batch_size(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        GlobalBatchSampler(20, **arguments)
    assert "\n" not in str(error.value)


# Resume


def epochs_of(loader, count):
    """``count`` epochs as lists of batches."""
    return [list(loader) for _ in range(count)]


@pytest.fixture(scope="module")
def uninterrupted():
    return flat(epochs_of(small(batch_size=4).train_dataloader(), 4))


def test_epochs_have_their_length_and_new_noise(uninterrupted):
    loader = small(batch_size=4).train_dataloader()
    assert [len(epoch) for epoch in epochs_of(loader, 3)] == [len(loader)] * 3 == [5] * 3
    first, second = (torch.cat(uninterrupted[k : k + 5]) for k in (0, 5))
    levels = [sorted((x + 0.5).mul(256).floor().sum().item() for x in e) for e in (first, second)]
    assert levels[0] == levels[1]  # the same images
    assert len(torch.cat([first, second]).flatten(1).unique(dim=0)) == 40  # each with other noise


@pytest.mark.parametrize("position", range(11))
def test_resume_at_every_position(uninterrupted, position):
    loader = small(batch_size=4).train_dataloader()
    seen = []
    while len(seen) < position:
        seen += islice(loader, position - len(seen))
    state = loader.state_dict()
    assert state["consumed"] == position

    resumed = small(batch_size=4).train_dataloader()
    iter(resumed)  # as Lightning does before it restores
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == 5 - position % 5
    rest += list(resumed)
    assert torch.stack(seen + rest).equal(torch.stack(uninterrupted[: position + len(rest)]))


def test_resume_with_workers_does_not_count_what_they_fetched_ahead(uninterrupted):
    loader = small(batch_size=4, num_workers=2).train_dataloader()
    seen = list(islice(loader, 2))
    assert loader.state_dict()["consumed"] == 2
    seen += list(loader) + list(loader)  # the left epoch, then the next one
    assert torch.stack(seen).equal(torch.stack(uninterrupted[:10]))

    resumed = small(batch_size=4, num_workers=2).train_dataloader()
    resumed.load_state_dict(loader.state_dict() | {"consumed": 3})
    assert torch.stack(list(resumed)).equal(torch.stack(uninterrupted[3:5]))


def test_iterator_that_is_not_advanced_consumes_nothing(uninterrupted):
    loader = small(batch_size=4).train_dataloader()
    early = iter(loader)
    next(iter(loader))
    assert loader.state_dict()["consumed"] == 1
    assert next(early).equal(uninterrupted[1])  # continues, although it was created before


def test_resume_at_another_number_of_processes():
    def loader(rank, world_size):
        sampler = GlobalBatchSampler(20, 4, rank=rank, world_size=world_size)
        return ResumableLoader(
            small().dataset("train"), batch_sampler=sampler, collate_fn=default_convert
        )

    one = loader(0, 1)
    before = next(iter(one))
    pair = [loader(rank, 2) for rank in range(2)]
    for half in pair:
        half.load_state_dict(one.state_dict())
    halves = torch.cat([next(iter(half)) for half in pair])
    assert halves.equal(next(iter(one)))
    assert not halves.equal(before)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 5}, "batch_size=4, now it is 5"),
        ({"num_train": 24}, "num_images=20, now it is 24"),
        ({"seed": 1}, "seed=0, now it is 1"),
    ],
)
def test_state_of_other_data_is_refused(option, message):
    state = small(batch_size=4).train_dataloader().state_dict()
    with pytest.raises(ValueError, match=f"cannot resume: .*{message}"):
        small(**{"batch_size": 4} | option).train_dataloader().load_state_dict(state)


def test_loading_leaves_the_global_random_numbers_alone():
    state = torch.get_rng_state()
    data = small(batch_size=4)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        list(loader)
    assert torch.get_rng_state().equal(state)


class Recorder(pl.LightningModule):
    """Remembers what it is trained and validated on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.validated = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.clone())
        return self.weight * batch.mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch.clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(steps, folder, checkpoint=None, **options):
    recorder = Recorder()
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(recorder, datamodule=small(batch_size=4), ckpt_path=checkpoint)
    return trainer, recorder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stop", [3, 5, 7])
def test_training_resumes_exactly(tmp_path, uninterrupted, stop):
    trainer, before = fit(stop, tmp_path)
    trainer.save_checkpoint(tmp_path / "stop.ckpt")
    _, after = fit(12, tmp_path, tmp_path / "stop.ckpt")
    seen = torch.stack(before.seen + after.seen)
    assert seen.equal(torch.stack(uninterrupted[:12]))


@pytest.mark.filterwarnings("ignore")
def test_training_resumes_exactly_after_an_epoch(tmp_path, uninterrupted):
    """A checkpoint of the end of an epoch, of a run that counts epochs, not steps."""
    save = Callback()
    path = tmp_path / "end.ckpt"
    save.on_train_epoch_end = lambda trainer, _: trainer.save_checkpoint(path)
    _, before = fit(-1, tmp_path, max_epochs=2, callbacks=[save])
    _, after = fit(-1, tmp_path, path, max_epochs=3)
    seen = torch.stack(before.seen + after.seen)
    assert seen.equal(torch.stack(uninterrupted[:15]))


@pytest.mark.filterwarnings("ignore")
def test_validation_is_the_same_each_time(tmp_path):
    _, recorder = fit(10, tmp_path, limit_val_batches=1)  # with sanity check: three times
    expected = next(iter(small(batch_size=4).val_dataloader()))
    assert len(recorder.validated) == 3
    assert all(batch.equal(expected) for batch in recorder.validated)


@pytest.mark.filterwarnings("ignore")
def test_overfitting_repeats_its_batches(tmp_path):
    _, recorder = fit(6, tmp_path, overfit_batches=2)
    assert torch.stack(recorder.seen[:2] * 3).equal(torch.stack(recorder.seen))


# Data module


def test_batches_of_chosen_images():
    data = small(data_range=(-1.0, 1.0))
    parts = list(data.batches("test", 2, indices=[4, 0, 3]))
    assert [indices for indices, _ in parts] == [[4, 0], [3]]
    whole = torch.cat([x for _, x in data.batches("test", 5)])
    assert whole.equal(torch.cat(list(data.test_dataloader())))
    assert torch.cat([x for _, x in parts]).equal(whole[[4, 0, 3]])


def test_images_without_quantisation():
    data = small(data_range=(-1.0, 1.0))
    _, x = next(data.batches("val", 7, dequantized=False))
    models = torch.stack([data.images("val")[i] for i in range(7)])
    assert x.shape == (7, *data.image_shape) == (7, 1, 8, 8)
    torch.testing.assert_close(x, 2 * models - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "data.image_size=0: expected at least"),
        ({"image_size": 7}, "data.image_size=7: expected at least 8"),
        ({"batch_size": 0}, "data.batch_size=0: expected at least 1"),
        ({"n_bits": 0}, "data.n_bits=0: expected 1 to 16"),
        ({"n_bits": 17}, "data.n_bits=17: expected 1 to 16"),
        ({"data_range": (1.0, -1.0)}, "data.data_range=.*lower < upper"),
        ({"num_workers": -1}, "data.num_workers=-1: expected 0 or more"),
        ({"seed": -1}, "data.seed=-1: expected 0 to"),
        ({"num_val": 0}, "data.num_val=0: expected at least 1"),
        ({"fault_throw": -0.1}, "data.fault_throw=-0.1: expected at least 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message) as error:
        LayerModels(**options)
    assert "\n" not in str(error.value)


class Phantoms(ImageDataModule):
    """As docs/data.md shows it."""

    channels = 1

    def images(self, split):
        return ArrayImages(np.load(f"{split}.npy", mmap_mode="r"))


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_class_of_ones_own(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    pixels = np.arange(3 * 64).reshape(3, 1, 8, 8)
    for split in ("train", "val", "test"):
        np.save(f"{split}.npy", (pixels if kind == np.uint8 else pixels / 255).astype(kind))
    data = Phantoms(image_size=8, batch_size=2)
    data.check(1)
    x = next(data.batches("test", 3))[1]
    np.testing.assert_array_equal(((x + 0.5) * 256).floor(), pixels)
    before = data.fingerprint()
    np.save("test.npy", np.load("test.npy")[::-1])
    assert data.fingerprint() != before


def test_fingerprint_of_layer_models_is_their_settings():
    before = small().fingerprint()
    assert before == small(batch_size=4, num_workers=2, horizontal_flips=True).fingerprint()
    changes = [{"num_test": 6}, {"seed": 1}, {"image_size": 9}, {"n_bits": None}]
    for change in [*changes, {"fault_throw": 0.1}]:
        assert small(**change).fingerprint() != before
    assert small().fingerprint("val") != before


@pytest.mark.parametrize("method", ["images", "dataset", "fingerprint"])
def test_unknown_split(method):
    with pytest.raises(ValueError, match="split='valid': expected one of train, val, test"):
        getattr(small(), method)("valid")


# Layer models


def components(image):
    return len(np.unique(image.numpy()))


def test_layer_models_are_reproducible():
    models = [LayerModelImages(16, 3, "test", seed=5).pixels([0, 2]) for _ in range(2)]
    assert models[0].shape == (2, 1, 16, 16)
    assert models[0].dtype == np.float32
    np.testing.assert_array_equal(*models)
    # Pinned: a change here makes every trained layer-model prior and every table stale.
    assert models[0].mean(dtype=float) == pytest.approx(GOLDEN_MEAN, abs=1e-6)


def test_seeds_splits_and_indices_give_different_models():
    models = [
        small(seed=seed).images(split)[index]
        for seed in range(2)
        for split in ("train", "val", "test")
        for index in range(5)
    ]
    assert len(torch.stack(models).flatten(1).unique(dim=0)) == len(models)


def test_index_outside_is_refused():
    with pytest.raises(IndexError, match=r"layer_models/val: index 7, expected 0 to 6"):
        small().images("val")[7]


@settings(max_examples=50, deadline=None)
@given(size=st.integers(8, 40), seed=st.integers(0, 2**32))
def test_resolutions_sample_the_same_model(size, seed):
    """The centres of a grid are every third centre of the grid three times as fine."""
    coarse, fine = (LayerModelImages(n, 1, "test", seed)[0] for n in (size, 3 * size))
    assert fine[:, 1::3, 1::3].equal(coarse)


@settings(max_examples=50, deadline=None)
@given(size=st.integers(8, 40), factor=st.integers(1, 7), seed=st.integers(0, 2**32))
def test_finer_grid_has_the_points_of_the_coarse_one(size, factor, seed):
    data = small(image_size=size, seed=seed)
    fine = data.finer([3, 0], factor)
    assert fine.shape == (2, 1, *[factor * (size - 1) + 1] * 2)
    coarse = torch.stack([data.images("test")[3], data.images("test")[0]])
    assert fine[..., ::factor, ::factor].equal(coarse)


@pytest.mark.parametrize("factor", [1, 3])
def test_fault_moves_one_side_of_a_model(factor):
    throw = 0.25  # 8 pixels
    whole = small(image_size=32, num_test=30).finer(range(30), factor)
    cut = small(image_size=32, num_test=30, fault_throw=throw).finer(range(30), factor)
    step, columns = 8 * factor, torch.arange(whole.shape[-1])
    places, downwards = [], []
    for before, after in zip(whole[:, 0], cut[:, 0], strict=True):
        same = (before == after).all(0)
        place = int(same.int().cumprod(0).sum())
        assert torch.equal(same, columns < place) or same.all()
        moved = after[:, place:], before[:, place:]
        down = torch.equal(moved[0][step:], moved[1][:-step])
        assert down or torch.equal(moved[0][:-step], moved[1][step:])
        places.append(place / len(columns))
        downwards.append(down)
    assert 0.2 < min(places) < 0.35
    assert 0.65 < max(places) < 0.8
    assert 8 < sum(downwards) < 22


def test_finer_grid_has_more_detail_of_the_same_layers():
    data = small(image_size=16)
    fine = data.finer([0], 4, "val")[0]
    assert set(data.images("val")[0].unique().tolist()) <= set(fine.unique().tolist())
    blocks = fine[:, :60, :60].unfold(1, 4, 4).unfold(2, 4, 4).flatten(3)
    assert (blocks != blocks[..., :1]).any()  # an edge runs between points of the coarse grid
    with pytest.raises(ValueError, match="factor=0"):
        data.finer([0], 0)


def test_fill_paints_younger_layers_over_older_ones():
    """Against the definition, pixel by pixel."""
    rng = np.random.default_rng(0)
    centres = (np.arange(9) + 0.5) / 9
    for count in (1, 4, 12):
        surfaces = rng.uniform(-0.5, 1.5, (3, count, 9))
        surfaces[1, count // 2] = -np.inf
        values = rng.random((3, count + 1), dtype=np.float32)
        expected = np.empty((3, 9, 9), dtype=np.float32)
        for model, row, column in np.ndindex(3, 9, 9):
            covered = np.flatnonzero(centres[row] < surfaces[model, :, column])
            expected[model, row, column] = values[model, max(covered + 1, default=0)]
        np.testing.assert_array_equal(_fill(surfaces, values, centres), expected)


def test_surfaces_are_dipping_sines():
    """Against the formula, with numbers chosen by hand: five surfaces, no jitter."""
    x = np.linspace(0, 1, 33)
    uniform = np.zeros((1, 2 + 5 * MAX_SURFACES))
    own, amplitude, length, phase = (slice(2 + 12 * k, 14 + 12 * k) for k in range(1, 5))
    uniform[0, 1], uniform[0, own] = 0.9, 0.25
    uniform[0, amplitude], uniform[0, length], uniform[0, phase] = 0.5, 1 / 3, 0.25
    surfaces = _surfaces(uniform, x)[0]
    first = 1 + np.tan(np.radians(20 - 10)) * (x - 0.5) + 0.05 * np.cos(2 * np.pi * x)
    np.testing.assert_allclose(surfaces[:5], first - 0.2 * np.arange(5)[:, None], atol=1e-12)
    assert (surfaces[5:] == -np.inf).all()


@pytest.fixture(scope="module")
def models():
    images = LayerModels(image_size=32).images("train")
    return torch.stack([images[i] for i in range(600)])


def test_layers_are_exactly_constant_and_several(models):
    layers = [components(model) for model in models]
    assert max(layers) <= MAX_SURFACES + 1
    assert min(layers) >= 2
    assert 5 < np.mean(layers) < 11


def test_models_vary_along_both_axes(models):
    """Layers dip and fold: rows are not constant, and left and right are alike on average."""
    assert all((model != model[..., :1]).any() for model in models)
    rise = (models[..., 0] - models[..., -1]).double().mean(dim=-1).squeeze()
    assert abs(rise.mean()) < 5 * rise.std() / len(rise) ** 0.5


def test_layer_values_have_their_distribution(models):
    values = np.concatenate([np.unique(model.numpy()) for model in models]).astype(float)
    nearest = np.abs(values[:, None] - LAYER_VALUES).argmin(axis=1)
    counts = np.bincount(nearest, minlength=20)
    expected = len(values) / 20
    assert len(LAYER_VALUES) == 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi², 19 degrees: p = 1e-4
    deviation = values - LAYER_VALUES[nearest]
    error = LAYER_STD / len(values) ** 0.5
    assert abs(deviation.mean()) < 5 * error
    # Half the spacing of the values is 2.1 standard deviations, where the nearest one changes.
    assert deviation.std() == pytest.approx(0.00947, abs=3 * error)
    assert values.min() > 0
    assert values.max() < 1
