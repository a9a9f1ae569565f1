"""Pairs of images and data of them, for flows of images given data."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from datamodules.base import SPLITS, ImageDataModule, in_order
from datamodules.dequantize import ImageSource, Key, random_stream
from datamodules.errors import DataError, require
from datamodules.prepared_pairs import StoredData, check_described, read_pairs_info
from flowprior.argument_types import check_types
from flowprior.identity import identity
from flowprior.own_code import code_digest, made_by
from flowprior.physics import Condition, Noise, ScaledData, find_operator, make_operator


@dataclass(eq=False)
class PairedImages(Dataset):
    """Images of a split and data of them, by (epoch, index).

    Attributes:
        images: gives images (B, C, H, W) for keys.
        module: makes the data.
        split: "train", "val" or "test".
    """

    images: Dataset
    module: "PairDataModule"
    split: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def changes(self) -> bool:
        """Whether an image can differ from epoch to epoch."""
        return getattr(self.images, "changes", False)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        """One pair."""
        x, y = self.__getitems__([key])
        return x[0], y[0]

    def __getitems__(self, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in the data range, and data (B, ...) of them."""
        indices = [index for _, index in keys]
        return self.images.__getitems__(keys), self.module.conditions(self.split, indices)


class PairDataModule(ImageDataModule):
    """Batches (x, y): images x (B, C, H, W) and data y (B, ...) of them, both float32.

    A pair depends on (seed, split, index); the noise of y is the same in each epoch.

    Attributes:
        conditioning: how y is made of data, kept with the weights of the flow. None if whoever uses
            the flow must make it.
    """

    conditioning: Condition | None = None

    def check(self, world_size: int) -> None:
        """See ``ImageDataModule``; also that weights can say how y is made."""
        super().check(world_size)
        if self.conditioning is not None:
            self.conditioning.described()

    @property
    @abstractmethod
    def condition_shape(self) -> tuple[int, ...]:
        """That of y."""

    @abstractmethod
    def conditions(self, split: str, indices: Sequence[int]) -> Tensor:
        """Data y (B, ...), float32."""

    def dataset(self, split: str, dequantized: bool = True) -> PairedImages:
        """Pairs of a split by (epoch, index)."""
        return PairedImages(self.image_dataset(split, dequantized), self, split)

    def pairs(
        self,
        split: str,
        batch_size: int,
        indices: Sequence[int] | None = None,
        dequantized: bool = True,
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(indices, images, data); arguments as for ``batches``."""
        dataset = self.dataset(split, dequantized)
        return ((part, *pair) for part, pair in in_order(dataset, batch_size, indices))


class SimulatedPairs(PairDataModule):
    """Images of another data module, and data that an operator makes of them.

    Data are A(x) + ε, or what a `condition` makes of them. Where the operator takes long, `python
    -m datamodules.prepare_pairs` makes all data once, into a `folder`.

    Reference: Siahkoohi & Herrmann, Learning by example: fast reliability-aware seismic imaging
    with normalizing flows (2021), for pairs of reflectivities and migrated images.

    Args:
        images: where the images come from, with all options of batches. Data are made of the
            images before they are quantised.
        operator: a name of `flowprior.physics.OPERATORS`, or an import path.
        noise: of the data.
        options: of the operator.
        condition: what the flow is given of the data; by default the data themselves.
        folder: of the data, once they are made; null to make them whenever they are asked for.

    Raises:
        ValueError: the images are flipped, or the operator does not take them, or gives complex
            data.
    """

    def __init__(
        self,
        images: ImageDataModule,
        operator: str,
        noise: Noise,
        options: dict[str, Any] | None = None,
        condition: Condition | None = None,
        folder: Path | None = None,
    ) -> None:
        check_types(SimulatedPairs.__init__, locals(), "data.")
        flips = images.horizontal_flips
        require(not flips, "images.horizontal_flips", flips, "false: data do not flip along")
        self.channels = images.channels
        super().__init__(
            images.image_size,
            images.batch_size,
            images.n_bits,
            images.data_range,
            images.num_workers,
            images.seed,
            flat_noise=images.flat_noise,
        )
        self.source, self.noise = images, noise
        self.named_operator = {"operator": operator, "options": options or {}}
        self.conditioning = condition or ScaledData()
        self.folder = None if folder is None else Path(folder)
        find_operator(operator)
        self._shape = self._found_shape()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.source.image_shape

    @cached_property
    def physics(self) -> nn.Module:
        """The operator; built when it is first used."""
        named = self.named_operator
        return make_operator(named["operator"], self.image_shape, **named["options"])

    @cached_property
    def _condition(self) -> Callable[[Tensor], Tensor]:
        """What makes conditions of data."""
        return self.conditioning.of(self.physics, torch.empty(1, *self.image_shape))

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """That of the data."""
        return self._shape

    def images(self, split: str) -> ImageSource:
        """Images of "train", "val" or "test", unquantised."""
        return self.source.images(split)

    def conditions(self, split: str, indices: Sequence[int]) -> Tensor:
        """Data y (B, ...); noise of each split is of its own."""
        if self.folder is None:
            return self.simulated(split, indices)
        return self._stored[split].rows(indices)

    @torch.no_grad()
    def simulated(self, split: str, indices: Sequence[int]) -> Tensor:
        """The same data, made now."""
        source = self.images(split)
        rows = torch.stack([source[index] for index in indices]).split(1)
        clean = torch.cat([self.physics.A(row) for row in rows])
        seed = int(random_stream(self.seed, f"data noise/{split}").integers(2**31))
        noisy = self.noise.add(clean, seed=seed, indices=indices)
        return torch.cat([self._condition(row) for row in noisy.split(1)])

    def check(self, world_size: int) -> None:
        """See ``PairDataModule``; also that data of a folder are finished, these and all there.

        Without a folder, that the condition can be made of data of the operator.
        """
        super().check(world_size)
        if self.folder is None:
            grey = torch.full((1, *self.image_shape), 0.5)
            found = tuple(self._condition(self.physics.A(grey)).shape[1:])
            if found != self.condition_shape:
                raise ValueError(
                    f"data.condition gives {found} of the data of one image, expected "
                    f"{self.condition_shape}"
                )
        else:
            for stored in self._stored.values():
                stored.check()

    def fingerprint(self, split: str = "test") -> dict[str, Any]:
        """See ``ImageDataModule``."""
        made = {**self.named_operator, "noise": identity(self.noise)}
        made["code"] = identity(find_operator(self.named_operator["operator"]))
        made["condition"] = identity(self.conditioning)
        return {**super().fingerprint(split), "data": made}

    def described(self) -> dict[str, Any]:
        """What data in a folder must have been made of: code, noise, images of all splits."""
        made = find_operator(self.named_operator["operator"])
        return {
            "shape": list(self.condition_shape),
            "operator": identity(made),
            "made by": made_by(made),
            "condition made by": made_by(type(self.conditioning)),
            **self._own_code(),
            "pairs": identity({split: self.fingerprint(split) for split in SPLITS}),
        }

    def _own_code(self) -> dict[str, Any]:
        """Digests of classes of one's own, of the pairs and of their images."""
        codes = {"own pairs": code_digest(type(self)), "own images": code_digest(type(self.source))}
        return {name: code for name, code in codes.items() if code}

    @cached_property
    def _stored(self) -> dict[str, StoredData]:
        """The data in the folder, by split; a DataError if they are others or not finished."""
        info = read_pairs_info(self.folder)
        if info is None or not info["finished"]:
            raise DataError(
                f"data.folder={self.folder}: there are no finished pairs; make them with python -m "
                "datamodules.prepare_pairs --config and the name of this config"
            )
        check_described(self.folder, info, self.described())
        return {
            s: StoredData(self.folder, s, len(self.images(s)), self._shape, info["files"][s])
            for s in SPLITS
        }

    def __getstate__(self) -> dict[str, Any]:
        built = ("physics", "_condition", "_stored")  # each process builds its own
        return {name: value for name, value in vars(self).items() if name not in built}

    def _found_shape(self) -> tuple[int, ...]:
        """That of images, of the data in the folder, or of what is given of a grey image."""
        if self.conditioning.gives_images:
            return self.image_shape
        info = None if self.folder is None else read_pairs_info(self.folder)
        if info is not None:
            return tuple(info["shape"])
        with torch.no_grad():
            grey = self._condition(self.physics.A(torch.full((1, *self.image_shape), 0.5)))
        name = self.named_operator["operator"]
        require(not grey.is_complex(), "operator", name, "one that gives real data")
        return tuple(grey.shape[1:])
