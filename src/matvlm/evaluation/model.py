"""Our models, teacher and students alike, as an lmms-eval model named `matvlm`."""

from __future__ import annotations

from pathlib import Path

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.utils import Collator

from matvlm.data.processor import load_processor
from matvlm.data.render import render_prompt
from matvlm.models.folder import load_model
from matvlm.progress import progress
from matvlm.training.device import pick_device
from matvlm.training.memory import fits


class MatVLM(lmms):
    """Greedy answers of a LLaVA model from its folder, in float32.

    lmms-eval drops the weights after each evaluation; `load` puts the next model in, so that one instance
    and one process serve many.

    Args:
        pretrained: folder of the first model; none: `load` is called before anything else.
        batch_size: questions a batch.
        device: as `matvlm.training.device.pick_device` reads it.
    """

    is_simple = True

    def __init__(self, pretrained: str | None = None, batch_size: int | str = 1, device: str = "auto") -> None:
        super().__init__()
        self.device = pick_device(device)
        self.batch_size = int(batch_size)
        self.title = "matvlm"
        if pretrained is not None:
            self.load(Path(pretrained))

    def load(self, folder: Path) -> None:
        """Take the model in ``folder``.

        Raises:
            UserError: the folder is not a whole model.
        """
        self.processor = load_processor(folder)
        self.processor.tokenizer.padding_side = "left"
        with fits(f"{folder}: its weights in float32", self.device):
            self.model = load_model(folder, dtype=torch.float32).to(self.device)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in the order of the requests, without white space around them.

        Requests are batched with others of like length and the same generation arguments.

        Raises:
            ValueError: a request asks for anything but greedy decoding.
        """
        tokenizer = self.processor.tokenizer
        work = Collator([r.args for r in requests], lambda args: -len(tokenizer.tokenize(args[0])), grouping=True)
        answers: list[str] = []
        with progress(title=self.title, total=len(requests), unit="question") as bar:
            for batch in work.get_batched(self.batch_size):
                contexts, kwargs, to_visual, ids, tasks, splits = zip(*batch, strict=True)
                docs = (self.task_dict[t][s][i] for t, s, i in zip(tasks, splits, ids, strict=True))
                images = [visual(doc) for visual, doc in zip(to_visual, docs, strict=True)]
                answers += self._answer(list(contexts), images, kwargs[0])
                bar.update(len(batch))
        return work.get_original(answers)

    @torch.inference_mode()
    def _answer(self, questions: list[str], images: list[list], kwargs: dict) -> list[str]:
        """Answers to one batch; ``images`` of each question, usually one."""
        if kwargs.get("do_sample") or kwargs.get("num_beams", 1) != 1:
            raise ValueError(f"generation_kwargs {kwargs}: only greedy decoding is done here")
        prompts = [render_prompt(text, len(shown)) for text, shown in zip(questions, images, strict=True)]
        flat = [image for shown in images for image in shown]
        inputs = self.processor(text=prompts, images=flat or None, padding=True, return_tensors="pt")
        inputs = inputs.to(self.device)  # input_ids: (questions, tokens)
        tokenizer = self.processor.tokenizer
        output = self.model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=kwargs["max_new_tokens"],
            use_cache=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        return [_cut(text, kwargs.get("until")).strip() for text in texts]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: no task here asks for it."""
        raise NotImplementedError("matvlm answers generate_until requests only")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered: no task here asks for it."""
        raise NotImplementedError("matvlm answers generate_until requests only")


def _cut(text: str, until: str | list[str] | None) -> str:
    """``text`` up to the first of the strings ``until``."""
    for stop in [until] if isinstance(until, str) else until or ():
        text = text.split(stop, 1)[0]
    return text
