"""What a training computes of its images once, instead of in each epoch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.data import Dataset

from datamodules.dequantize import DequantizedImages, Key


@dataclass(eq=False)
class PreparedRows(Dataset):
    """Rows that a function made of images which are the same in each epoch; in memory.

    They come by the same keys as the images, so their order is that of the images.

    Attributes:
        images: what they are made of.
        batch_size: number of images that the function is given at once.
        maker: name of the function, for errors.
        rows: (N, ...), or None where the function made none: it is the images then.
    """

    images: DequantizedImages
    batch_size: int
    maker: str = "prepare"
    rows: Tensor | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Tensor:
        """The row of one image, or the image."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> Tensor:
        """Rows (B, ...) of images, or the images."""
        if self.rows is None:
            return self.images.__getitems__(keys)
        return self.rows[[index for _, index in keys]]

    def fill(
        self,
        function: Callable[[Tensor], Tensor],
        total: Callable[[Tensor], Tensor],
        process: tuple[int, int],
        advance: Callable[[int], None],
    ) -> bool:
        """Compute all rows, and say whether there are any.

        Every process takes every W-th batch. The batches do not depend on W, and so the rows do
        not either, to the last bit.

        Args:
            function: makes rows (B, ...) of images (B, C, H, W); None of the first batch says that
                it makes none at all.
            total: sums a tensor over the processes.
            process: number of this process, and of all: W.
            advance: told how many images are done.

        Raises:
            ValueError: what the function makes are not rows of one shape, one for each image.
        """
        rank, world_size = process
        self.rows = None
        for start in range(0, len(self), self.batch_size):
            indices = range(start, min(start + self.batch_size, len(self)))
            mine = start // self.batch_size % world_size == rank
            if mine or self.rows is None:  # the first batch tells the shape of a row
                made = function(self.images.__getitems__([(0, index) for index in indices]))
                if made is None and start == 0:
                    return False
                self._check(made, len(indices))
                if self.rows is None:
                    self.rows = made.new_zeros(len(self), *made.shape[1:], device="cpu")
                if mine:
                    self.rows[start : indices.stop] = made.cpu()
            advance(len(indices))
        self.rows = total(self.rows)
        return True

    def _check(self, made: object, count: int) -> None:
        shape = tuple(made.shape) if isinstance(made, Tensor) else ()
        if not shape or shape[0] != count:
            given = type(made).__name__ if not isinstance(made, Tensor) else shape
            expected = f"a tensor with one row for each of {count} images"
            raise ValueError(f"{self.maker} must give {expected}, got {given}")
        if self.rows is not None and shape[1:] != self.rows.shape[1:]:
            expected = (count, *self.rows.shape[1:])
            raise ValueError(f"{self.maker} must give rows of one shape, {expected}, got {shape}")
