"""`python -m matvlm.teacher.assemble`: a teacher of a language model that is given and what was trained for it."""

from __future__ import annotations

import argparse
from pathlib import Path

from matvlm import config, provenance
from matvlm.errors import one_line
from matvlm.models.folder import check_folder, save_model
from matvlm.teacher.adapter import apply_adapter
from matvlm.teacher.join import join_given


@one_line
def main(argv: list[str] | None = None) -> None:
    """Join language model, tower and connector, and merge the adapters."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="JSON of matvlm.config.JoinedTeacher")
    for name in ("--language", "--adapter", "--out"):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args(argv)
    settings = config.parse_settings(config.JoinedTeacher, args.settings)
    cost = provenance.Cost()
    given = check_folder(args.language)
    model, processor = join_given(settings, args.language, seed=0)
    trained = apply_adapter(model, args.adapter, settings.training.lora)
    record = {
        "step": "join_teacher",
        "made_of": {
            "language": given,
            "language_hash": provenance.model_hash(args.language),
            "adapter": trained,
        },
        "provenance": provenance.describe(settings.model_dump(mode="json")),
        "cost": cost.finish(),
    }
    save_model(model.eval(), args.out, record, processor=processor)


if __name__ == "__main__":
    raise SystemExit(main())
