import pytest

from raypipe.errors import ConfigError
from raypipe.models.packed import load_tokenizer
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
