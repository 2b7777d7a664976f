"""The environment in which lmms-eval is imported: no network, no caches left behind, no chatter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def offline() -> Iterator[Path]:
    """A temporary folder for caches, and the environment variables that say so, until the block ends.

    The libraries read most of these when they are imported, so that import belongs inside the block.
    """
    with TemporaryDirectory(prefix="matvlm-evaluation-") as folder:
        wanted = {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_EVALUATE_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_HOME": folder,
            "HF_DATASETS_CACHE": f"{folder}/datasets",
            "LMMS_EVAL_DATASETS_CACHE": f"{folder}/datasets",
            # lmms-eval unpickles whatever lies in its request cache, by default inside its own package.
            "LM_HARNESS_CACHE_PATH": f"{folder}/requests",
            # Warnings and errors of lmms-eval are shown; its reports are not, nor its bars of less than a minute.
            "LOGURU_LEVEL": "WARNING",
            "TQDM_DELAY": "60",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
