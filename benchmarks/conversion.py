"""What a conversion at full size takes of memory: random weights in the release's layout, there and back.

    python benchmarks/conversion.py

Each conversion is a process of its own. Needs 20 GB of disk below --folder. `peak_rss_bytes` counts pages of
mapped files too, which the system may take back at any time; `peak_anonymous_bytes` does not. Both are above what
the process held when its libraries were imported. Writes results/benchmarks/conversion.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from matvlm.files import csv_text, write_text

TEXT = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32, "num_attention_heads": 32}
VISION = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
REPLACED = range(0, 32, 4)
WAYS = ("to_ours", "to_release")
COLUMNS = ("way", "weight_bytes", "peak_rss_bytes", "peak_anonymous_bytes")


def main() -> None:
    """Convert the release's 25 % student at full size in and out."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, help="where to write checkpoints; default: a temporary folder")
    parser.add_argument("--layers", type=int, default=32, help="decoder layers, to try it out")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/conversion.csv"))
    parser.add_argument("--one", nargs=3, metavar=("SOURCE", "OUT", "LIKE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        release, ours, back = (Path(name) / part for part in ("release", "ours", "back"))
        make_release(release, args.layers)
        rows = []
        for way, words in zip(WAYS, ((release, ours, ""), (ours, back, release)), strict=True):
            command = [sys.executable, __file__, "--one", *map(str, words)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append({"way": way, **json.loads(done.stdout.splitlines()[-1])})
    write_text(args.out, csv_text(COLUMNS, rows))
    print(args.out.read_text(encoding="utf-8"))


def make_release(folder: Path, layers: int) -> None:
    """A 25 % student in bfloat16, as the release stores it."""
    import torch

    from matvlm.convert.checkpoint import Item, write_shards
    from matvlm.convert.match import head_shapes, release_shapes
    from matvlm.convert.release import read_release
    from matvlm.data.tokenizer import build_tokenizer

    folder.mkdir(parents=True)
    replaced = [index for index in REPLACED if index < layers]
    text = {"model_type": "phi", "vocab_size": 51200, "partial_rotary_factor": 0.4, **TEXT}
    vision = {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14, **VISION}
    config = {"model_type": "tinyllava", "connector_type": "mlp2x_gelu", "vision_config": vision}
    mamba = {"d_model": 2560, "n_layer": layers, "ssm_cfg": {"expand": 1, "ngroups": 32, "d_state": 80}}
    mamba["attn_layers"] = [index for index in range(layers) if index not in replaced]
    config["text_config"] = text | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "mamba_config.json").write_text(json.dumps(mamba), encoding="utf-8")
    build_tokenizer().save_pretrained(folder)
    ours, _ = read_release(folder)
    shapes = release_shapes(ours, folder) | head_shapes(ours.vision_config)
    items = [
        Item(name, shape, torch.bfloat16, lambda shape=shape: torch.rand(shape, dtype=torch.bfloat16))
        for name, shape in shapes.items()
    ]
    write_shards(folder, items, 5_000_000_000)


def measure(source: str, out: str, like: str) -> dict[str, int]:
    """Convert in this process, with its memory looked at every few milliseconds."""
    from matvlm.convert.run import convert

    before, peaks, end = resident(), [0, 0], threading.Event()

    def watch() -> None:
        while not end.wait(0.005):
            peaks[:] = map(max, peaks, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    report = convert(Path(source), Path(out), like=Path(like) if like else None)
    end.set()
    watcher.join()
    rss, anonymous = (peak - base for peak, base in zip(peaks, before, strict=True))
    return {"weight_bytes": report.bytes, "peak_rss_bytes": rss, "peak_anonymous_bytes": anonymous}


def resident() -> tuple[int, int]:
    """Bytes of this process in memory (Linux): all, and those that are no file's."""
    found = {}
    for line in Path(f"/proc/{os.getpid()}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(("VmRSS", "RssAnon")):
            name, kilobytes = line.split()[:2]
            found[name.rstrip(":")] = int(kilobytes) * 1024
    return found["VmRSS"], found["RssAnon"]


if __name__ == "__main__":
    main()
