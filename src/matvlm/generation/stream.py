"""The text of transformers' `generate`, piece by piece while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from threading import Event, Thread

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, TextIteratorStreamer


class _Told(StoppingCriteria):
    """Stops a generation that nobody waits for any more."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        """One flag a sequence, (b,)."""
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def generate(model: PreTrainedModel, seed: int | None, **arguments) -> Tensor:
    """`model.generate`; where it samples, with the random numbers of ``seed`` or with new ones, after which
    torch's are again what they were before.

    Returns:
        Token ids (b, tokens), the prompt's first.
    """
    cuda = model.device.type == "cuda"
    # A thread starts with the first GPU as its own, whichever the model is on.
    with torch.cuda.device(model.device) if cuda else nullcontext():
        if not arguments["do_sample"]:
            return model.generate(**arguments)
        with torch.random.fork_rng([model.device] if cuda else []):
            torch.seed() if seed is None else torch.manual_seed(seed)
            return model.generate(**arguments)


def stream(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int | None, ids: list[int], **arguments
) -> Iterator[str]:
    """Text of one sequence as it comes, ending at words; special tokens are left out.

    The generation runs in a thread of its own, and ends when the iterator is closed.

    Args:
        seed: as for `generate`. ids: list that the generated ids are added to.
        arguments: of `model.generate`, for a batch of one.

    Raises:
        Exception: what `model.generate` raises.
    """
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop, failures = Event(), []

    def run() -> None:
        try:
            output = generate(model, seed, **arguments, streamer=streamer, stopping_criteria=[_Told(stop)])
            ids.extend(output[0, arguments["input_ids"].shape[1] :].tolist())
        except BaseException as error:  # handed to whoever waits for the text
            failures.append(error)
            streamer.on_finalized_text("", stream_end=True)

    thread = Thread(target=run, name="generate", daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]
