"""Asking a teacher or student about an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from matvlm.data.images import open_own_image
from matvlm.data.processor import load_processor
from matvlm.errors import UserError
from matvlm.generation.decoding import Decoding
from matvlm.generation.fused import FusedDecoder, unsupported
from matvlm.generation.memory import check_memory
from matvlm.generation.prompt import Turn, encode_prompt
from matvlm.generation.stream import generate, stream
from matvlm.models.folder import check_folder, load_checked, read_config
from matvlm.training.device import pick_device

DTYPES = ("auto", "float32", "bfloat16")


class Answer:
    """An answer as it is made: iterate once over its pieces of text.

    The pieces joined are ``text``, which has no white space around it. ``ids`` are the tokens generated, the
    end-of-text token included; ``stopped`` says, once all is read, that the length and not the model ended it.
    """

    def __init__(self, pieces: Iterator[str], ids: list[int], eos_token_id: int) -> None:
        self.text, self.ids, self._eos = "", ids, eos_token_id
        self._pieces = _trim(pieces)

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            self.text += piece
            yield piece

    def close(self) -> None:
        """End the generation; ``text`` stays what it is."""
        self._pieces.close()

    @property
    def stopped(self) -> bool:
        return bool(self.ids) and self.ids[-1] != self._eos


class Chat:
    """A model that answers questions about images.

        chat = Chat.open(Path("runs/tiny/teacher"))
        for piece in chat.ask(Path("image.png"), "What colour is the circle?"):
            print(piece, end="", flush=True)

    Attributes:
        positions: tokens that prompt and answer may have together.
    """

    def __init__(
        self,
        folder: Path,
        config: LlavaConfig,
        processor: LlavaProcessor,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.folder, self.processor, self.device, self.dtype = folder, processor, device, dtype
        self.positions: int = config.text_config.max_position_embeddings

    @classmethod
    def open(cls, folder: Path, device: str = "auto", dtype: str = "auto") -> Chat:
        """Check a model's folder and whether it fits; its weights are loaded by `load` or the first question.

        Args:
            device: `auto` (a GPU where there is one), `cpu`, `cuda`, or one GPU such as `cuda:1`.
            dtype: of weights and activations: `float32`, `bfloat16`, or `auto`, bfloat16 on a GPU alone.

        Raises:
            UserError: no such device or dtype; a folder that is no whole LLaVA model; too little GPU memory.
        """
        folder = Path(folder)
        if dtype not in DTYPES:
            raise UserError(f"--dtype {dtype}: unknown; allowed: {', '.join(DTYPES)}")
        chosen = _pick(device)
        if dtype == "auto":
            dtype = "bfloat16" if chosen.type == "cuda" else "float32"
        check_folder(folder)
        config, processor = read_config(folder), load_processor(folder)
        check_memory(folder, chosen, getattr(torch, dtype))
        return cls(folder, config, processor, chosen, getattr(torch, dtype))

    @cached_property
    def model(self) -> LlavaForConditionalGeneration:
        """The model on its device, in evaluation mode; loaded when it is first used."""
        try:
            return load_checked(self.folder, dtype=self.dtype).to(self.device)
        except torch.OutOfMemoryError:
            raise UserError(f"{self.folder}: its weights do not fit into the memory of {self.device}") from None

    @cached_property
    def decoder(self) -> FusedDecoder | None:
        """What decodes single answers on a GPU at the speed of its memory; none where it cannot."""
        return None if unsupported(self.model, batch=1) else FusedDecoder(self.model, 1, self.positions)

    def load(self) -> Chat:
        """Load the weights now rather than with the first question."""
        _ = self.model
        return self

    def check(self, questions: Sequence[str]) -> None:
        """Whether a conversation of ``questions`` can be had at all, judged without the weights.

        Raises:
            UserError: a question is empty, or too long even if all answers before it are empty.
        """
        for i, question in enumerate(questions):
            encode_prompt(question, [(text, "") for text in questions[:i]], self.processor, self.positions)

    def ask(
        self,
        image: Path | Image.Image,
        question: str,
        decoding: Decoding | None = None,
        earlier: Sequence[Turn] = (),
    ) -> Answer:
        """Ask one question.

        Args:
            image: a file, or an image in memory.
            decoding: greedy if none. A beam search's answer comes as one piece.
            earlier: questions and answers that were exchanged about this image before.

        Returns:
            The answer, which is made while it is iterated over; that raises UserError if memory runs out.

        Raises:
            UserError: an image that cannot be used, an empty question, or a prompt longer than the model allows.
        """
        decoding, tokenizer = decoding or Decoding(), self.processor.tokenizer
        eos = tokenizer.eos_token_id
        if not isinstance(image, Image.Image):
            image = open_own_image(Path(image))
        prompt = encode_prompt(question, earlier, self.processor, self.positions)
        pixels = self.processor.image_processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        input_ids = torch.tensor([prompt], device=self.device)  # (1, tokens)
        ids: list[int] = []
        arguments = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": pixels.to(self.device, self.dtype),  # (1, 3, S, S)
            "max_new_tokens": min(decoding.max_new_tokens, self.positions - len(prompt)),
            "eos_token_id": eos,
            "pad_token_id": eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            **decoding.arguments(),
        }
        return Answer(self._pieces(arguments, decoding, ids), ids, eos)

    def _pieces(self, arguments: dict, decoding: Decoding, ids: list[int]) -> Iterator[str]:
        tokenizer = self.processor.tokenizer
        try:
            # An answer that is read while another is still being made goes the plain way.
            if decoding.num_beams == 1 and self.decoder is not None and not self.decoder.busy:
                with self.decoder.active():
                    self.decoder.reset()
                    cache = self.decoder.cache
                    yield from stream(
                        self.model, tokenizer, decoding.seed, ids, past_key_values=cache, **arguments
                    )
            elif decoding.num_beams == 1:
                yield from stream(self.model, tokenizer, decoding.seed, ids, **arguments)
            else:  # only at its end is it known which beam wins
                output = generate(self.model, decoding.seed, **arguments)
                ids += output[0, arguments["input_ids"].shape[1] :].tolist()
                yield tokenizer.decode(ids, skip_special_tokens=True)
        except torch.OutOfMemoryError:
            tokens = arguments["input_ids"].shape[1] + arguments["max_new_tokens"]
            raise UserError(
                f"--device {self.device}: its memory ran out; {tokens} tokens in {decoding.num_beams} beams are "
                "too many for it: fewer --max-new-tokens or --num-beams may do, or --device cpu"
            ) from None


def _pick(device: str) -> torch.device:
    """As `pick_device`, but nothing that it knows and no model here runs on, and no GPU beyond the last."""
    chosen = pick_device(device)
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: unknown; allowed: auto, cpu, cuda, cuda:0, …")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {device}: no such GPU; there are {torch.cuda.device_count()}, counted from 0")
    return chosen


def _trim(pieces: Iterator[str]) -> Iterator[str]:
    """The same text without white space at its ends; none inside is lost."""
    begun, held = False, ""
    for piece in pieces:
        text = held + piece if begun else piece.lstrip()
        body = text.rstrip()
        held = text[len(body) :]
        if body:
            begun = True
            yield body
