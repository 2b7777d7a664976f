"""Writing checkpoints beside the training: copied to the CPU at once, hashed and written by a thread.

The thread has copies of its own, so that the training may change its weights meanwhile. Each process has one
writer, and one write at a time: what a training holds for it are the trained weights and their moments once.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from matvlm.training import checkpoint


class Writer:
    """Writes the checkpoints of a run to ``folder``, one at a time.

    As a context it waits, at its end, for the write under way, whatever ended the block. An error of that write
    is raised then, or a warning on stderr if the block ends with an error of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None
        self._copies: dict[str, Tensor] = {}

    def save(
        self,
        progress: checkpoint.Progress,
        weights: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Copy what a checkpoint holds and have it written; returns when the copies are made.

        Raises:
            OSError: of the write before, which is waited for.
        """
        self.finish()
        tensors = checkpoint.tensors(weights, optimizer)
        snapshot = {kind: self._copy(kind, found) for kind, found in tensors.items()}
        for device in {tensor.device for found in tensors.values() for tensor in found.values()}:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        self._pending = self._pool.submit(checkpoint.write, self.folder, progress, snapshot)

    def finish(self) -> None:
        """Wait for the write under way.

        Raises:
            OSError: it went wrong; raised once.
        """
        if self._pending is not None:
            try:
                self._pending.result()
            finally:
                self._pending = None

    def settle(self) -> None:
        """Wait for the write under way, however it ends; from any thread."""
        if (pending := self._pending) is not None:
            wait([pending])

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        try:
            self.finish()
        except OSError as problem:
            if error is None:
                raise
            print(f"warning: {self.folder}: the last checkpoint was not written: {problem}", file=sys.stderr)

    def _copy(self, kind: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Into the memory of the copies before: pinned pages, which a GPU copies to, take long to come by."""
        copies = {}
        for name, tensor in found.items():
            key = f"{kind}/{name}"
            if key not in self._copies:
                self._copies[key] = torch.empty_like(
                    tensor, device="cpu", memory_format=torch.contiguous_format, pin_memory=tensor.is_cuda
                )
            copies[name] = self._copies[key].copy_(tensor, non_blocking=True)
        return copies
