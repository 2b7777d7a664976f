"""The hybrid as a Hugging Face model: initialisation, saving and loading, caches and generation."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import grouped_query_teacher, llama_teacher, padded_batch, prompt
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    PhiConfig,
    SiglipVisionConfig,
)

from matvlm.errors import UserError
from matvlm.layouts import LayoutError, resolve
from matvlm.models import HYBRIDS
from matvlm.models.folder import load_model, save_model
from matvlm.models.initialise import build_student, student_config

SHAPE = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4, "vocab_size": 32}
TEACHERS = ["multi-head", "grouped-query", "llama"]
FAMILIES = {"phi": PhiConfig, "llama": LlamaConfig}


@pytest.fixture(scope="module", params=TEACHERS)
def teacher(small, debug, request):
    """The shared teacher, one like it whose heads share keys and values in pairs, or one with a Llama."""
    if request.param == "llama":
        return llama_teacher(small)
    shared = load_model(small / "teacher")
    if request.param == "multi-head":
        assert shared.config.text_config.num_key_value_heads == debug.teacher.text.heads
        return shared
    return grouped_query_teacher(small, debug)


@pytest.fixture(scope="module", params=["end-50", "even-25", "0,1,2", "even-100"])
def student(teacher, request):
    return build_student(teacher, request.param, "attention", 1)


def test_saved_and_loaded_is_the_same_model(student, small, tmp_path):
    """Every tensor, the decays and step sizes too, which are drawn anew in a model that is not loaded."""
    save_model(student, tmp_path / "m", {}, like=small / "teacher")
    loaded = load_model(tmp_path / "m")
    state = student.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[name]), name
    inputs = prompt(student)
    with torch.no_grad():
        assert torch.equal(student(**inputs).logits, loaded(**inputs).logits)


def test_loaded_model_generates_the_same_with_and_without_cache(student, small, tmp_path):
    save_model(student, tmp_path / "m", {}, like=small / "teacher")
    loaded, inputs = load_model(tmp_path / "m"), prompt(student)
    options = {"max_new_tokens": 12, "do_sample": False, "min_new_tokens": 12}
    cached = loaded.generate(**inputs, **options, use_cache=True)
    assert torch.equal(cached, loaded.generate(**inputs, **options, use_cache=False))
    assert torch.equal(cached, loaded.generate(**inputs, **options, cache_implementation="static"))
    assert torch.equal(cached, student.generate(**inputs, **options, use_cache=True))
    assert cached.shape[1] == inputs["input_ids"].shape[1] + 12


def test_the_cache_counts_tokens(student):
    """Also where no layer is attention: `generate` asks it to go on from a cache."""
    inputs = prompt(student)
    length = inputs["input_ids"].shape[1]
    options = {"do_sample": False, "return_dict_in_generate": True}
    first = student.generate(**inputs, max_new_tokens=3, min_new_tokens=3, **options)
    assert first.past_key_values.get_seq_length() == length + 2  # the last token has not been read yet
    pixels, again = inputs["pixel_values"], {"max_new_tokens": 4, "min_new_tokens": 4}
    mask = torch.ones_like(first.sequences)
    resumed = student.generate(
        first.sequences, attention_mask=mask, past_key_values=first.past_key_values, **again, **options
    )
    whole = student.generate(first.sequences, attention_mask=mask, pixel_values=pixels, **again, **options)
    assert torch.equal(resumed.sequences, whole.sequences)


def test_steps_through_a_cache_give_the_logits_of_one_pass(student):
    inputs = prompt(student)
    ids, start = inputs["input_ids"], student.config.image_seq_length + 3
    with torch.no_grad():
        whole = student(**inputs).logits
        out = student(input_ids=ids[:, :start], pixel_values=inputs["pixel_values"], use_cache=True)
        parts, cache = [out.logits], out.past_key_values
        for part in (ids[:, start : start + 4], ids[:, start + 4 : start + 5], ids[:, start + 5 :]):
            parts.append(student(input_ids=part, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_batch_padded_on_the_left_generates_what_each_prompt_does(student, use_cache):
    batch, prompts = padded_batch(student)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "use_cache": use_cache}
    together = student.generate(**batch, **options)
    for row, one in enumerate(prompts):
        alone = student.generate(**one, attention_mask=torch.ones_like(one["input_ids"]), **options)
        assert torch.equal(together[row, batch["input_ids"].shape[1] :], alone[0, one["input_ids"].shape[1] :])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits(student, side):
    one, two = prompt(student, 5, 1), prompt(student, 9, 1)
    pad, ids = student.config.pad_token_id, one["input_ids"]
    extra = torch.full((1, 4), pad)
    row = torch.cat([extra, ids] if side == "left" else [ids, extra], 1)
    batch = {
        "input_ids": torch.cat([row, two["input_ids"]]),
        "pixel_values": torch.cat([one["pixel_values"], two["pixel_values"]]),
    }
    mask = torch.ones_like(batch["input_ids"])
    where = slice(0, 4) if side == "left" else slice(ids.shape[1], None)
    mask[0, where] = 0
    with torch.no_grad():
        together = student(**batch, attention_mask=mask).logits[0, mask[0].bool()]
        alone = student(**one).logits[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def tiny(family: str, tied: bool, **changes):
    """Configuration of a hybrid language model with heads that share keys and values in pairs."""
    layers = ["full_attention", "linear_attention"] * 2
    shape = SHAPE | {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": layers} | changes
    return HYBRIDS[family](**shape, tie_word_embeddings=tied)


@pytest.mark.parametrize(
    ("family", "tied", "changes"),
    [("phi", False, {}), ("llama", False, {}), ("llama", True, {}), ("llama", False, {"head_dim": 6})],
)
def test_auto_classes_know_the_hybrid(tmp_path, family, tied, changes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny(family, tied, **changes)).eval()
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).mamba_layers == [1, 3]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(0, 32, (2, 7))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded.eval()(ids).logits)


class Attention(torch.nn.Module):
    """A stock attention that is called as a mixer is."""

    def __init__(self, stock, rotary):
        super().__init__()
        self.stock, self.rotary = stock, rotary

    def forward(self, normed, mask, cache):
        return self.stock(normed, position_embeddings=self.rotary, attention_mask=mask)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replaced_layer_is_wired_as_the_stock_one(family):
    """With the stock attention in the mixer's place, it is the stock layer; a hybrid without Mamba-2 layers is the
    stock model."""
    torch.manual_seed(0)
    hybrid = AutoModelForCausalLM.from_config(tiny(family, False, layer_types=["full_attention"] * 4)).eval()
    config = FAMILIES[family](**SHAPE, num_attention_heads=4, num_key_value_heads=2)
    stock = AutoModelForCausalLM.from_config(config).eval()
    stock.load_state_dict(hybrid.state_dict())
    ids, states = torch.randint(0, 32, (2, 7)), torch.randn(2, 7, 32)
    given = stock.model.layers[1]
    rotary = stock.model.rotary_emb(states, torch.arange(7)[None])
    layer = AutoModelForCausalLM.from_config(tiny(family, False)).eval().model.layers[1]
    layer.mamba = torch.nn.Identity()
    layer.load_state_dict({k: v for k, v in given.state_dict().items() if not k.startswith("self_attn.")})
    layer.mamba = Attention(given.self_attn, rotary)
    with torch.no_grad():
        assert torch.equal(hybrid(ids).logits, stock(ids).logits)
        assert torch.equal(layer(states), given(states, position_embeddings=rotary))


def test_a_folder_loads_through_the_multimodal_auto_class(student, teacher, small, tmp_path):
    save_model(student, tmp_path / "m", {}, like=small / "teacher")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "m")
    assert loaded.config.text_config.model_type == f"hybrid_{teacher.config.text_config.model_type}"
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == teacher.config.tie_word_embeddings


def test_gradient_reaches_every_trained_weight(student):
    student.train().requires_grad_(True)
    student.zero_grad()
    student(**prompt(student)).logits.square().mean().backward()
    without = [n for n, w in student.named_parameters() if w.grad is None and "language_model" in n]
    assert without == []
    student.eval()


@pytest.mark.parametrize("init", ["attention", "random", "release-random"])
def test_initialisations_differ_in_what_they_copy(teacher, init):
    """`release-random` alone leaves norms and MLP of the replaced layers random."""
    teacher = copy.deepcopy(teacher)
    for weight in teacher.model.language_model.layers.parameters():
        torch.nn.init.normal_(weight)  # a fresh norm's and bias's ones and zeros are no sign of a copy
    student = build_student(teacher, "even-50", init, 3)
    layer, given = student.model.language_model.layers[2], teacher.model.language_model.layers[2]
    own = layer.state_dict()
    for name, value in given.state_dict().items():
        if not name.startswith("self_attn."):
            assert torch.equal(own[name], value) == (init != "release-random"), name
    mixer, attention = layer.mamba, given.self_attn
    _, x, B, C, _ = mixer.in_proj.weight.split([mixer.d_inner, mixer.d_xb, mixer.d_xb, mixer.d_inner, mixer.heads])
    output = "dense" if hasattr(attention, "dense") else "o_proj"
    copies = {"v_proj": x, "k_proj": B, "q_proj": C, output: mixer.out_proj.weight}
    for name, value in copies.items():
        assert torch.equal(value, getattr(attention, name).weight) == (init == "attention"), name
    kept = student.model.language_model.layers[1].state_dict()
    for name, value in teacher.model.language_model.layers[1].state_dict().items():
        assert torch.equal(kept[name], value)


def test_same_seed_same_student(small):
    teacher = load_model(small / "teacher")
    one, same, other = (build_student(teacher, "even-50", "attention", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("layout", ["even-5", "even-101", "sideways-25", "4", "0,0", ""])
def test_a_layout_that_does_not_fit_is_refused(small, layout):
    with pytest.raises(LayoutError) as error:
        build_student(load_model(small / "teacher"), layout, "attention", 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("ratio", "count"), [("12.5", 4), ("25", 8), ("50", 15)])
def test_layouts_on_the_depth_of_smollm2(ratio, count):
    text = LlamaConfig(hidden_size=576, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=30)
    teacher = LlavaConfig(text_config=text, vision_config=SiglipVisionConfig())
    made = student_config(teacher, f"even-{ratio}", "attention").text_config
    assert made.mamba_layers == resolve(f"even-{ratio}", 30)
    assert len(made.mamba_layers) == count
    assert (made.model_type, made.head_dim) == ("hybrid_llama", 64)


def test_a_family_without_hybrids_is_refused():
    teacher = LlavaConfig(text_config=GPT2Config(), vision_config=SiglipVisionConfig())
    with pytest.raises(UserError, match="its language model is 'gpt2'; students are made of phi, llama"):
        student_config(teacher, "even-25", "attention")


def test_a_tensor_too_many_or_too_few_is_refused(student, small, tmp_path):
    """A folder's hash may be right and its tensors still not the model's."""
    from safetensors.torch import load_file, save_file

    from matvlm.files import write_json
    from matvlm.provenance import file_hash

    save_model(student, tmp_path / "m", {}, like=small / "teacher")
    weights = tmp_path / "m" / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("A_log"))
    for change, word in (({}, "missing"), ({name: tensors[name], "stray": torch.zeros(1)}, "unexpected")):
        rest = {key: value for key, value in tensors.items() if key != name} | change
        save_file(rest, weights, metadata={"format": "pt"})
        write_json(tmp_path / "m" / "provenance.json", {"files": {weights.name: file_hash(weights)}})
        with pytest.raises(UserError, match=word):
            load_model(tmp_path / "m")
