"""What a preset will cost, from arithmetic alone: cells, tokens, weights trained, FLOPs, bytes of cache.

Nothing is run and no data is read: models are built on the meta device to count their weights. Tokens are
upper bounds, as if every conversation had ``max_length`` tokens.

FLOPs of a run (a multiply-add is two) with D positions, of which I are image tokens::

    prob or ce:  (4 (W - H) + 2 T + 3 M) D + 4 H P + 6 C I
    layer:       (4 T + 2 F + 2 O + 3 S) D
    online:      (2 W' + M') D + 2 (V + C) I            the teacher's pass
                 (2 (W' - H) + M') D k + 2 (V + C) I    with L_layer but not L_prob
                 2 V I                                  with neither

W: weights of the language model's matrix products, head included and embedding not; H: of the head, which is
applied at P positions: those that predict an answer token with L_ce alone (planned for as if all did), all with
L_prob; k: the share of layers up to the last one replaced; T: weights of the mixers, the only ones of W with
weight gradients; C: of the connector; F: of the MLPs beside the mixers; O: of the
mixers' convolutions and output projections; V: of the vision tower; a dash marks the teacher's. A forward
pass takes two FLOPs a weight, a gradient of activations two, a gradient of weights two. Of a layer by itself
only O passes gradients of activations on, as nothing before the input projection is trained.
M is what mixing positions takes forwards: 4 L d in an attention layer (scores and values over all L =
``max_length`` positions), and S in all Mamba-2 layers together, each 4 (c + n) d (chunk size c, state n,
width d of all heads); backwards twice that. A teacher trained here takes
``(6 W' + 3 M') D + 6 (V + C) I``. Validation, attention within the tower, norms and other element-wise work
are left out.

Of a preset that only measures, it says how many measurements there are, and how large each model is with the keys
and values of its attention layers at the longest context.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from matvlm.config import (
    BaseCell,
    Cache,
    Config,
    EmbeddedTeacher,
    JoinedTeacher,
    LlavaData,
    Optimisation,
    Preset,
    RandomTeacher,
)
from matvlm.errors import UserError
from matvlm.experiments import AXES, Cell, all_cells, base_cell, compared_layers, table_cells

if TYPE_CHECKING:
    from transformers import LlavaConfig

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Size:
    """What a model's costs follow from: numbers of weights, by the letters of the module's formulas, and
    FLOPs a position of mixing. ``total`` and ``trained`` count biases and vectors too."""

    total: int
    trained: int
    W: int
    H: int
    T: int
    C: int
    F: int
    O: int  # noqa: E741
    V: int
    M: int
    S: int


def measure(config: LlavaConfig, length: int) -> Size:
    """Size of a teacher or student, for sequences of ``length`` positions."""
    import torch

    from matvlm.distill.task import select_trainable
    from matvlm.models.hybrid import head_dim
    from matvlm.models.llava import new_model

    with torch.device("meta"):
        model = new_model(config)
    text = config.text_config
    replaced = getattr(text, "mamba_layers", [])
    if replaced:
        select_trainable(model)
    counts = dict.fromkeys("WHTCFOV", 0)
    mixed = tuple(f"model.language_model.layers.{index}.mlp." for index in replaced)
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or "embed_tokens" in name or name.startswith("lm_head."):
            continue
        if name.startswith("model.vision_tower."):
            counts["V"] += weight.numel()
        elif name.startswith("model.multi_modal_projector."):
            counts["C"] += weight.numel()
        else:
            counts["W"] += weight.numel()
            counts["T"] += weight.numel() * (".mamba." in name)
            counts["O"] += weight.numel() * (".mamba.out_proj." in name or ".mamba.conv1d." in name)
            counts["F"] += weight.numel() * name.startswith(mixed)
    head = model.lm_head.weight.numel()  # by itself: it may be the embedding
    counts["W"], counts["H"] = counts["W"] + head, head
    inner = text.num_attention_heads * head_dim(text)
    scan = len(replaced) * 4 * (getattr(text, "mamba_chunk_size", 0) + head_dim(text)) * inner
    attention = (text.num_hidden_layers - len(replaced)) * 4 * length * inner
    return Size(
        total=sum(weight.numel() for weight in model.parameters()),
        trained=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        M=attention + scan,
        S=scan,
        **counts,
    )


def distill_flops(size: Size, loss: str, positions: int, images: int, scored: int | None = None) -> int:
    """FLOPs of training a student on ``positions``, of which ``images`` are image tokens; the head is applied at
    ``scored`` of them, or at all."""
    terms = set(loss.split("+"))
    flops = 0
    if terms & {"prob", "ce"}:
        flops += (4 * (size.W - size.H) + 2 * size.T + 3 * size.M) * positions + 6 * size.C * images
        flops += 4 * size.H * (positions if scored is None else scored)
    if "layer" in terms:
        flops += (4 * size.T + 2 * size.F + 2 * size.O + 3 * size.S) * positions
    return flops


def forward_flops(teacher: Size, positions: int, images: int) -> int:
    """FLOPs of the teacher's pass."""
    return (2 * teacher.W + teacher.M) * positions + 2 * (teacher.V + teacher.C) * images


def online_flops(teacher: Size, loss: str, positions: int, images: int, share: float) -> int:
    """FLOPs of what ``loss`` needs of a teacher beside the student. ``share``: of its layers, up to the last one
    replaced."""
    terms = set(loss.split("+"))
    if "prob" in terms:
        return forward_flops(teacher, positions, images)
    if "layer" not in terms:
        return 2 * teacher.V * images
    layers = (2 * (teacher.W - teacher.H) + teacher.M) * positions
    return round(layers * share) + 2 * (teacher.V + teacher.C) * images


def cache_bytes(
    config: LlavaConfig, settings: Cache, positions: int, conversations: int, points: int | None = None
) -> int:
    """Bytes of tensors in the teacher's cache.

    Full: ``positions (v + points d) b + conversations (image tokens) (tower's width) b``, at b bytes a
    number; topk keeps values and indices of k tokens and of those drawn, and a tail, of 4 bytes
    each in place of the v logits. Online: 0.

    Args:
        points: of the residual stream that are kept; none for all, one more than layers.
    """
    if settings.mode == "online":
        return 0
    text, size = config.text_config, BYTES[settings.dtype]
    tokens = settings.top_k + settings.tail_draws
    logits = (2 * tokens + 1) * 4 if settings.mode == "topk" else text.vocab_size * size
    points = text.num_hidden_layers + 1 if points is None else points
    states = points * text.hidden_size * size
    vision = config.image_seq_length * config.vision_config.hidden_size * size
    return positions * (logits + states) + conversations * vision


def teacher_architecture(preset: Preset) -> LlavaConfig:
    """Configuration of the preset's teacher.

    Raises:
        UserError: the folder of a teacher on disk holds none.
    """
    if isinstance(preset.teacher, RandomTeacher):
        from matvlm.teacher.architecture import llava_config

        return llava_config(preset.teacher)
    if isinstance(preset.teacher, EmbeddedTeacher):
        from matvlm.data.tokenizer import vocabulary
        from matvlm.teacher.build import teacher_config

        ids = {"image": 0, "eos": 0, "pad": 0}
        return teacher_config(preset.teacher, vocab_size=len(vocabulary()), token_ids=ids)
    if isinstance(preset.teacher, JoinedTeacher):
        from matvlm.teacher.join import planned_config

        return planned_config(preset.teacher)
    from matvlm.models.folder import read_config

    return read_config(preset.teacher.path)


def tables_of(cell: Cell, preset: Preset, base: BaseCell) -> str:
    """Names of the tables that a cell is in, `all` of the base cell, `grid` of what only the grid has."""
    if cell == base_cell(base):
        return "all"
    return " ".join(axis for axis in AXES if cell in table_cells(axis, preset, base)) or "grid"


def plan(config: Config) -> str:
    """The costs of the active preset as lines of text.

    Raises:
        UserError: a file that the costs depend on is missing.
    """
    preset, base = config.active, config.base
    if not preset.trains:
        return "\n".join(_measuring_lines(config.preset, preset))
    cells, seeds = all_cells(preset, base), len(preset.ablation.seeds)
    architecture, length = teacher_architecture(preset), preset.data.max_length
    teacher, tokens = measure(architecture, length), architecture.image_seq_length
    positions, images = _positions(preset.distill, length, tokens)

    @lru_cache
    def student(layout: str) -> tuple[Size, float]:
        from matvlm.models.initialise import student_config

        made = student_config(architecture, layout, base.init)
        text = made.text_config
        return measure(made, length), (max(text.mamba_layers) + 1) / text.num_hidden_layers

    rows = [("cell", "tables", "trained", "FLOPs a run")]
    total = 0
    for cell in cells:
        size, share = student(cell.layout)
        flops = distill_flops(size, cell.loss, positions, images)
        if preset.cache.mode == "online":
            flops += online_flops(teacher, cell.loss, positions, images, share)
        total += flops * seeds
        rows.append((cell.path, tables_of(cell, preset, base), f"{size.trained:,}", f"{flops:.3g}"))
    runs = len(cells) * seeds
    lines = [
        f"preset {config.preset}: {len(cells)} cells x {seeds} seeds = {runs} runs, each at most {positions:,} "
        f"tokens ({preset.distill.steps} steps x {preset.distill.batch_size} conversations x {length} tokens)",
        "",
        *_aligned(rows),
        "",
        f"all runs   at most {positions * runs:,} tokens, {total:.3g} FLOPs",
        *_teacher_lines(preset, base, architecture, teacher),
    ]
    return "\n".join(lines)


def _measuring_lines(name: str, preset: Preset) -> Iterator[str]:
    """The costs of a preset that trains nothing."""
    from matvlm.models.hybrid import head_dim
    from matvlm.models.initialise import student_config

    settings, teacher = preset.profile, teacher_architecture(preset)
    places = len(settings.prompt_tokens) * len(settings.generated_tokens) * len(settings.batch_sizes)
    # In protocol paper the teacher runs with each implementation of attention.
    models = {"same_runtime": 1 + len(settings.layouts), "paper": len(settings.attention) + len(settings.layouts)}
    count = places * settings.repeats * sum(models[protocol] for protocol in settings.protocols)
    context = max(settings.prompt_tokens) + max(settings.generated_tokens)
    batch, size = max(settings.batch_sizes), BYTES[settings.dtype]
    yield (
        f"preset {name}: nothing is trained; at most {count:,} measurements ({', '.join(settings.protocols)}; "
        f"{places} points, {settings.repeats} repeats), contexts of up to {context:,} tokens"
    )
    yield ""
    rows = [("model", "Mamba-2 layers", "weights", "bytes", f"keys and values at {batch} x {context:,}, bytes")]
    for layout in (None, *settings.layouts):
        config = teacher if layout is None else student_config(teacher, layout, "attention")
        text, weights = config.text_config, measure(config, context).total
        replaced = len(getattr(text, "mamba_layers", []))
        width = text.num_key_value_heads * head_dim(text)
        held = 2 * (text.num_hidden_layers - replaced) * width * context * batch * size
        of = f"{replaced} of {text.num_hidden_layers}"
        rows.append((layout or "teacher", of, f"{weights:,}", f"{weights * size:,}", f"{held:,}"))
    yield from _aligned(rows)


def _positions(settings: Optimisation, length: int, image_tokens: int) -> tuple[int, int]:
    """Upper bounds of all positions and of image tokens in a training run; one image a conversation."""
    conversations = settings.steps * settings.batch_size
    return conversations * length, conversations * min(image_tokens, length)


def _teacher_lines(preset: Preset, base: BaseCell, architecture: LlavaConfig, teacher: Size) -> Iterator[str]:
    depth = architecture.text_config.num_hidden_layers
    line = f"teacher    {teacher.total:,} weights, {depth} layers"
    length, tokens = preset.data.max_length, architecture.image_seq_length
    # A language model that is given has gradients of activations, and of weights none to speak of.
    passes = 4 if isinstance(preset.teacher, JoinedTeacher) else 6
    if isinstance(preset.teacher, EmbeddedTeacher | JoinedTeacher) and preset.teacher.trained_here:
        positions, flops = 0, 0
        for stage in preset.teacher.training.stages:
            seen, images = _positions(stage, length, tokens)
            positions += seen
            flops += (passes * teacher.W + 3 * teacher.M) * seen + 6 * (teacher.V + teacher.C) * images
        line += f", trained on at most {positions:,} tokens, {flops:.3g} FLOPs"
    yield line
    if preset.cache.mode == "online":
        yield "cache      none: the teacher runs beside each student, which its FLOPs include"
        return
    count = _conversations(preset)
    from matvlm.distill.forward import points_of

    points = len(points_of(compared_layers(preset, base))) if preset.cache.states == "needed" else None
    size = cache_bytes(architecture, preset.cache, count * length, count, points)
    flops = forward_flops(teacher, count * length, count * tokens)
    kind = f"{preset.cache.mode}, {preset.cache.dtype}"
    yield f"cache      {kind}: at most {size:,} bytes for {count:,} conversations, {flops:.3g} FLOPs"


def _conversations(preset: Preset) -> int:
    """Conversations that students are distilled from."""
    if not isinstance(preset.data, LlavaData):
        split = preset.data.splits["distill"]
        return split.easy_vqa + split.sort_of_clevr
    path = preset.data.conversations
    try:
        return len(json.loads(path.read_text(encoding="utf-8"))) - preset.data.val_rows
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: missing or not a JSON list; the cache's size depends on it") from None


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Columns of text, the first two to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{text:<{width}}" for text, width in zip(row[:2], widths[:2], strict=True)]
        cells += [f"{text:>{width}}" for text, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join(cells)
