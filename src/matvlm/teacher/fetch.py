"""`python -m matvlm.teacher.fetch`: take over a teacher that is given, as the paper starts from one."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from matvlm import config
from matvlm.errors import UserError, one_line
from matvlm.files import written_aside
from matvlm.models.folder import check_folder, load_model
from matvlm.teacher.build import teacher_config


def fetch(settings: config.EmbeddedTeacher, out: Path) -> None:
    """Copy the shipped teacher to ``out`` after checking that it is whole and of the size configured.

    Raises:
        UserError: it is missing, altered, or of another architecture than ``settings`` says.
    """
    check_folder(settings.path)
    found = load_model(settings.path).config
    wanted = teacher_config(settings, vocab_size=found.text_config.vocab_size, token_ids=_token_ids(found))
    for part in ("vision_config", "text_config"):
        ours, theirs = getattr(wanted, part).to_diff_dict(), getattr(found, part).to_diff_dict()
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key) and key not in ("dtype", "architectures", "transformers_version"):
                raise UserError(
                    f"{settings.path / 'config.json'}: {part}.{key} is {theirs.get(key)!r}, but params.yaml "
                    f"asks for {ours.get(key)!r}; set teacher.source to train for another architecture"
                )
    with written_aside(out) as aside:
        shutil.copytree(settings.path, aside, dirs_exist_ok=True)


def _token_ids(found) -> dict[str, int]:
    text = found.text_config
    return {"image": found.image_token_id, "eos": text.eos_token_id, "pad": text.pad_token_id}


@one_line
def main(argv: list[str] | None = None) -> None:
    """Take over the shipped teacher."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="JSON of matvlm.config.EmbeddedTeacher")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    fetch(config.parse_settings(config.EmbeddedTeacher, args.settings), args.out)


if __name__ == "__main__":
    raise SystemExit(main())
