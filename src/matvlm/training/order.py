"""Which rows an optimizer step sees: a function of seed and step alone, so that every cell of an ablation
sees the same data in the same order and a resumed run needs no sampler state."""

from __future__ import annotations

import numpy as np


def epoch_order(size: int, seed: int, epoch: int, block: int | None = None) -> np.ndarray:
    """A permutation of ``size`` rows, the same whenever it is asked for. With ``block``, runs of so many
    consecutive rows stay together: they are permuted among themselves, and the rows within each."""
    draw = np.random.default_rng([seed, epoch])
    if block is None:
        return draw.permutation(size)
    starts = draw.permutation(range(0, size, block))
    return np.concatenate([draw.permutation(range(start, min(start + block, size))) for start in starts])


class Order:
    """Batches of ``batch_size`` from ``rows``, epoch after epoch, each a permutation of all of them (see
    `epoch_order`)."""

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int, block: int | None = None) -> None:
        self.rows, self.batch_size, self.seed, self.block = np.asarray(rows), batch_size, seed, block
        self._epoch: tuple[int, np.ndarray] | None = None

    def __call__(self, step: int) -> np.ndarray:
        """Rows of step ``step``, which counts from 0; a batch may span two epochs."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(positions, len(self.rows))
        return np.concatenate(
            [self.rows[self._permutation(epoch)[offsets[epochs == epoch]]] for epoch in np.unique(epochs)]
        )

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (int(epoch), epoch_order(len(self.rows), self.seed, int(epoch), self.block))
        return self._epoch[1]
