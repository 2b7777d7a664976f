"""The command `matvlm`: a thin command line over the library.

What takes seconds to import is imported where it is used, so that help and mistakes come at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from matvlm.config import ConfigError, read_config
from matvlm.errors import UserError, one_line


@one_line
def main(argv: list[str] | None = None) -> int:
    """Ask a model about an image; convert checkpoints; check files and folders; say what a preset costs."""
    parser = argparse.ArgumentParser(prog="matvlm", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_check(commands)
    _add_plan(commands)
    _add_generate(commands)
    _add_convert(commands)
    args = parser.parse_args(argv)
    return args.run(args)


def _add_check(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "check",
        help="check files and folders",
        description="Check each PATH and print a line for it. Exit status 2 if any cannot be used.",
    )
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="params.yaml, a teacher's cache, a model's folder, or a conversation file (.json)",
    )
    parser.add_argument("--images", type=Path, metavar="ROOT", help="of a conversation file; default: its folder")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a conversation file's bad rows here")
    parser.set_defaults(run=_check)


def _add_plan(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "plan",
        help="say what a preset will cost",
        description="Cells, tokens, trained weights, FLOPs and cache of a preset, from arithmetic alone.",
    )
    parser.add_argument("--preset", metavar="NAME", help="default: the preset in use")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE")
    parser.set_defaults(run=_plan)


def _add_generate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "generate",
        help="ask a model about an image",
        description="Answer each QUESTION about an image, on stdout as the answer is made; a later question sees "
        "the earlier answers. Without a QUESTION they are read from stdin, one a line.",
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder of a teacher or student")
    parser.add_argument("--image", type=Path, required=True, metavar="FILE")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="of an answer; default: 512")
    parser.add_argument("--temperature", type=float, metavar="T", help="sample; default: greedy")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest tokens of this sum")
    parser.add_argument("--seed", type=int, metavar="N", help="of the sampling; default: another answer each time")
    parser.add_argument("--num-beams", type=int, default=1, metavar="N", help="beam search, printed at its end")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:0, …; default: a GPU if there is one")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="default: bfloat16 on a GPU, else float32",
    )
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> int:
    from matvlm.generation.decoding import Decoding

    decoding = Decoding(args.max_new_tokens, args.temperature, args.top_p, args.seed, args.num_beams)
    from matvlm.generation.terminal import converse

    try:
        converse(args.model, args.image, args.questions, decoding, args.device, args.dtype)
    except KeyboardInterrupt:
        print()
        return 130  # as shells have it: 128 + SIGINT
    except BrokenPipeError:  # whoever read the answer has what they wanted, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its exit
        return 141  # 128 + SIGPIPE
    return 0


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "convert",
        help="convert checkpoints of the paper's release, in and out",
        description="Convert a TinyLLaVA Factory or MaTVLM checkpoint to a model folder, or a model folder back.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to be made")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="with the tokenizer, if SOURCE has none")
    parser.add_argument(
        "--like", type=Path, metavar="FOLDER", help="of the release, for what only it has (see docs)"
    )
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: as in SOURCE")
    parser.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> int:
    from matvlm.convert.run import convert

    report = convert(args.source, args.out, tokenizer=args.tokenizer, like=args.like, dtype=args.dtype)
    for title in ("left_out", "added", "notes"):
        for line in getattr(report, title):
            print(f"{title.replace('_', ' ')}: {line}")
    files = f"{report.files} file{'s' if report.files > 1 else ''}"
    print(f"{args.out}: {report.tensors:,} tensors, {report.bytes / 1e9:,.2f} GB in {files}")
    return 0


def _plan(args: argparse.Namespace) -> int:
    config = read_config(args.params)
    if args.preset is not None:
        if args.preset not in config.presets:
            raise ConfigError(f"--preset {args.preset}: unknown; allowed: {', '.join(config.presets)}")
        config = config.model_copy(update={"preset": args.preset})
    from matvlm.plan import plan

    print(plan(config))
    return 0


def _check(args: argparse.Namespace) -> int:
    files = [path for path in args.paths if path.suffix == ".json"]
    if args.report is not None and len(files) != 1:
        raise UserError(f"--report: takes the rows of one conversation file, not of {len(files)}")
    failed = False
    for path in args.paths:
        try:
            print(f"ok: {path}: {_describe(path, args.images, args.report)}", flush=True)
        except (UserError, OSError) as error:
            failed = True
            # A message names the file itself, which may be one within the folder.
            text = (
                f"{error.filename or path}: {error.strerror or error}"
                if isinstance(error, OSError)
                else str(error)
            )
            print(f"error: {text if str(path) in text else f'{path}: {text}'}", flush=True)
    return 2 if failed else 0


def _describe(path: Path, images: Path | None, report: Path | None) -> str:
    """What a path holds, after checking all of it.

    Raises:
        UserError: it cannot be used, or is nothing that can be checked.
        OSError: it cannot be read.
    """
    if path.is_dir():
        if (path / "manifest.json").is_file():
            return _cache(path)
        if (path / "config.json").is_file() or (path / "provenance.json").is_file():
            return _model(path)
        raise UserError(f"{path}: neither a cache (manifest.json) nor a model (config.json, provenance.json)")
    if path.suffix == ".json":
        return _conversations(path, images or path.parent, report)
    config = read_config(path)
    return f"configuration with presets {', '.join(config.presets)}"


def _cache(path: Path) -> str:
    from matvlm.distill.cache.read import CacheReader

    reader = CacheReader(path, {})
    reader.check()
    mode, shards = reader.manifest["mode"], len(reader.manifest["shards"])
    return f"cache, {mode}, {len(reader)} conversations in {shards} shards"


def _model(path: Path) -> str:
    from matvlm.data.processor import load_processor
    from matvlm.models.folder import load_model

    model = load_model(path)
    load_processor(path)
    text = model.config.text_config
    replaced = len(getattr(text, "mamba_layers", []))
    kind = f"student, {replaced} of {text.num_hidden_layers} layers Mamba-2" if replaced else "teacher"
    return f"{kind}, {model.num_parameters():,} weights"


def _conversations(path: Path, images: Path, report: Path | None) -> str:
    from matvlm.data.conversations import load_conversations, write_report
    from matvlm.data.errors import NoSoundRow

    rows: list = []
    try:
        rows, rejected = load_conversations(path, images, check_images=True)
    except NoSoundRow as error:
        rejected = error.rejected
        if not rejected:  # an empty list
            raise
    total = len(rows) + len(rejected)
    if report is not None:
        write_report(report, rejected, total)
    if rejected:
        fields = Counter(item["field"].partition("[")[0] for item in rejected)
        first = rejected[0]
        counts = ", ".join(f"{field} {count}" for field, count in fields.most_common())
        raise UserError(
            f"{path}: {len(rejected)} of {total} rows cannot be used ({counts}); the first: row {first['row']}: "
            f"{first['field']}: {first['reason']}"
        )
    return f"{total} conversations"


if __name__ == "__main__":
    raise SystemExit(main())
