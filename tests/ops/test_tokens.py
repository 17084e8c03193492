import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raypipe.config import TEMPLATES
from raypipe.errors import ConfigError
from raypipe.models.pretrained import load_tokenizer
from raypipe.ops.ifd import exact_passes
from raypipe.ops.tokens import IGNORED, anchor_ids, prompt_ids, text_ids, training_sequence
from tests.lakes import save_random_model


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no_bos"])
def tokenizer(request, tmp_path_factory):
    return load_tokenizer(str(save_random_model(tmp_path_factory.mktemp("m") / "m", "llama", bos=request.param)))


def test_prompt_has_bos_where_there_is_one(tokenizer):
    """A second BOS, or none, shifts every probability of the model."""
    ids = prompt_ids(tokenizer, "Q: {instruction}\nA:", ["add"])[0]
    bos = [1] if tokenizer.bos_token_id is not None else []
    assert ids == bos + tokenizer("Q: add\nA:", add_special_tokens=False)["input_ids"]
    assert anchor_ids(tokenizer) == ([1] if bos else [0])


def test_braces_in_an_instruction_are_text(tokenizer):
    """str.format would fail on the first sample that holds a dict."""
    text = tokenizer.decode(
        prompt_ids(tokenizer, "{instruction}!", ['{"a": {instruction}}'])[0], skip_special_tokens=True
    )
    assert text == '{"a": {instruction}}!'


def test_responses_have_no_special_tokens(tokenizer):
    assert text_ids(tokenizer, ["x = 1", ""])[1] == []
    assert tokenizer.decode(text_ids(tokenizer, ["x = 1"])[0]) == "x = 1"


def test_labels_are_response_and_eos():
    assert training_sequence([7, 8], [5], 0) == ([7, 8, 5, 0], [IGNORED, IGNORED, 5, 0])


def test_chat_is_the_tokenizers_own_form(tokenizer):
    """The template writes its own BOS, where the model wants one: none may be added to it."""
    with pytest.raises(ConfigError, match="has no chat template"):
        prompt_ids(tokenizer, "chat", ["add"])
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    try:
        assert tokenizer.decode(prompt_ids(tokenizer, "chat", ["a {b}"])[0]) == "<user>a {b}<assistant>"
    finally:
        tokenizer.chat_template = None


MARKS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]  # fmt: skip
FORMS = {  # what the model sees before the response to "add": marks, which are one token each, and text, a token a character
    "paper": ["<s>", "Question:\nadd\n\nAnswer:\n"],
    "deepseek": ["<s>", "### Instruction:\nadd\n### Response:\n"],
    "starcoder2": ["<s>", "### Instruction:\nadd\n### Response:\n"],
    "codellama": ["<s>", "[INST] add [/INST]"],
    "codegemma": ["<s>", "<start_of_turn>", "user\nadd", "<end_of_turn>", "\n", "<start_of_turn>", "model\n"],
    "codeqwen": ["<s>", "<|im_start|>", "user\nadd", "<|im_end|>", "\n", "<|im_start|>", "assistant\n"],
    "llama3": ["<s>", "<|start_header_id|>", "user", "<|end_header_id|>", "\n\nadd", "<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"],
    "alpaca": ["<s>", "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\nadd\n\n### Response:"],
    "chat": ["<s>", "<|im_start|>", "user: add", "<|im_end|>", "assistant: "],
    "Do this: {instruction}!": ["<s>", "Do this: add!"],
}  # fmt: skip


@pytest.fixture(scope="module")
def characters():
    """A tokenizer of one token a character, whose ids can be written down."""
    vocabulary = (
        {mark: n for n, mark in enumerate(MARKS)} | {chr(code): code + 100 for code in range(32, 127)} | {"\n": 110}
    )
    plain = Tokenizer(models.WordLevel(vocabulary))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", additional_special_tokens=MARKS[2:]
    )
    made.chat_template = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}assistant: "
    return made


@pytest.mark.parametrize("form", FORMS)
def test_every_form_to_the_token(form, characters):
    """One token more or less before the response, and every IFD is that of another prompt."""
    ids = [
        n for piece in FORMS[form] for n in ([MARKS.index(piece)] if piece in MARKS else [ord(c) + 100 for c in piece])
    ]
    (prompt,) = prompt_ids(characters, TEMPLATES.get(form, form), ["add"])
    assert prompt == ids
    passes = exact_passes(anchor_ids(characters), [prompt], text_ids(characters, ["x=1"]), 1000)
    response = [ord("x") + 100, ord("=") + 100, ord("1") + 100]
    assert passes.sequences == [(ids + response, [0, *response])]
    (first, first_alone), (whole, alone) = passes.num_context_N2[0], passes.sequences[0]
    assert whole[first] == alone[first_alone] == ord("x") + 100


def test_every_known_form_is_shown():
    assert set(FORMS) > {*TEMPLATES, "chat"}
