"""What a training writes down of its steps: the rows of log.csv, and TensorBoard's events."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from matvlm.files import csv_text

COLUMNS = (
    "step",
    "tokens",
    "loss",
    "loss_prob",
    "loss_layer",
    "loss_ce",
    "lr",
    "grad_norm",
    "seconds",
    "val_kl",
    "val_ce",
)


class Log:
    """Rows of log.csv, held in memory and kept in each checkpoint; also sent to TensorBoard if asked for, which
    is told to forget what an interrupted run sent from step ``start`` on."""

    def __init__(self, tensorboard: Path | None, start: int = 0) -> None:
        self.rows: list[dict[str, str]] = []
        self.writer = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(tensorboard), purge_step=start)

    def add(self, step: int, **values: float) -> None:
        """One row; columns not given stay empty, seconds and losses are rounded to what is meaningful."""
        row = {"step": str(step)} | {name: _number(value) for name, value in values.items()}
        self.rows.append(row)
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def text(self) -> str:
        """All rows so far, as log.csv has them."""
        return csv_text(COLUMNS, self.rows)

    def restore(self, text: str) -> None:
        """Go on from the text of another log."""
        self.rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(io.StringIO(text))]

    def close(self) -> None:
        """Send what TensorBoard has not been sent yet."""
        if self.writer is not None:
            self.writer.close()


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.8g}" if math.isfinite(value) else str(value)
