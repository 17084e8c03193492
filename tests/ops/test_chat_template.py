"""Who chats with the trained model sends the tokens that it was trained on."""

import jinja2
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from raypipe.config import TEMPLATES
from raypipe.models.pretrained import load_tokenizer
from raypipe.ops.chat_template import chat_template
from raypipe.ops.tokens import prompt_ids, text_ids, training_sequence
from tests.lakes import save_random_model

HOSTILE = ["{{ x }}", "{% raw %}", "{#", "#}", "{%- endfor %}", "}}", '"', "'", "\\", "\\n", "\\u0041", "\r\n", "\r",
           "\n\n", " ", "\t", "{instruction", "}", "PROMPT", "<bos>", "<eos>", "\x00", "\u2028", "\u0085", "\U0001f600",
           "e\u0301", "def f(x):\n    return {x}"]  # fmt: skip
text = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=8), max_size=6).map("".join)
template = st.lists(text, min_size=2, max_size=4).map("{instruction}".join) | st.sampled_from(
    sorted(TEMPLATES.values())
)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def tokenizer(request, tmp_path_factory):
    """With BOS, and without: the attribute of the model that decides what a template must write."""
    folder = tmp_path_factory.mktemp("models") / request.param
    return load_tokenizer(str(save_random_model(folder, request.param, bos=request.param == "llama", layers=1)))


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def rendered(tokenizer, form, messages, **options):
    """(text, ids), by a template set as the trained model has it."""
    tokenizer.chat_template = chat_template(form)
    shown = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return shown, list(tokenizer.apply_chat_template(messages, **options)["input_ids"])


def bos_of(tokenizer):
    return tokenizer.bos_token or ""


@given(template, text)
@example("{{ x }}{% raw %}\r\n\U0001f600{instruction}\\ \"'{#{instruction}\n", " {{ y }}{instruction}\n")
def test_a_prompt_is_that_of_training(tokenizer, form, instruction):
    """One token more or less before the response, BOS above all, and the served model is not the measured one."""
    (wanted,) = prompt_ids(tokenizer, form, [instruction])
    shown, ids = rendered(tokenizer, form, [user(instruction)], add_generation_prompt=True)
    assert ids == wanted
    assert shown == bos_of(tokenizer) + form.replace("{instruction}", instruction)


@given(template, text, text)
def test_a_sample_is_that_of_training(tokenizer, form, instruction, response):
    """Text exactly; ids where the tokenizer splits the joined text before the response, which no template decides."""
    shown, ids = rendered(tokenizer, form, [user(instruction), assistant(response)])
    prompt = form.replace("{instruction}", instruction)
    assert shown == bos_of(tokenizer) + prompt + response + tokenizer.eos_token
    (before,), (after,) = prompt_ids(tokenizer, form, [instruction]), text_ids(tokenizer, [response])
    bos = before[: len(bos_of(tokenizer)) > 0]
    assume(bos + text_ids(tokenizer, [prompt + response])[0] == before + after)
    assert ids == training_sequence(before, after, tokenizer.eos_token_id)[0]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("response", ["def add(a, b):\n    return a + b\n", "```python\nprint({})\n```"])
def test_every_known_template_to_the_token(tokenizer, name, response):
    """The law above leaves out what a tokenizer merges: on code, as models answer with, nothing may be left out."""
    (prompt,), (after,) = prompt_ids(tokenizer, TEMPLATES[name], ["Add a and b."]), text_ids(tokenizer, [response])
    _, ids = rendered(tokenizer, TEMPLATES[name], [user("Add a and b."), assistant(response)])
    assert ids == training_sequence(prompt, after, tokenizer.eos_token_id)[0]


def test_rounds_and_system_by_hand(tokenizer):
    """A second BOS, a lost EOS or a swallowed system message would show in no other test."""
    talk = [{"role": "system", "content": " Be brief."}, user("a"), assistant("b "), user("c")]
    shown, _ = rendered(tokenizer, "Q: {instruction} ({instruction})\nA:", talk, add_generation_prompt=True)
    assert shown == bos_of(tokenizer) + "Q:  Be brief.\n\na ( Be brief.\n\na)\nA:b <eos>Q: c (c)\nA:"


@given(st.lists(st.tuples(text, text), min_size=1, max_size=4))
def test_rounds_are_one_after_the_other(tokenizer, rounds):
    """A longer chat begins with the shorter one, or a server's cache of prefixes never hits."""
    talk = [message for one, other in rounds for message in (user(one), assistant(other))]
    shown, _ = rendered(tokenizer, TEMPLATES["deepseek"], talk)
    form = TEMPLATES["deepseek"]
    one_by_one = [form.replace("{instruction}", one) + other + tokenizer.eos_token for one, other in rounds]
    assert shown == bos_of(tokenizer) + "".join(one_by_one)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "tool", "content": "4"}], "message 1: got role tool, wanted user"),
        ([user("a"), user("b")], "message 2: got role user, wanted assistant"),
        ([user("a"), {"role": "system", "content": "b"}], "message 2: got role system, wanted assistant"),
        ([assistant("a")], "message 1: got role assistant, wanted user"),
        ([user("a"), {"role": "assistant", "content": None}], "message 2: its content must be text"),
        ([{"role": "system", "content": [{"type": "text", "text": "a"}]}, user("a")], "message 1: its content"),
    ],
)
def test_what_training_never_saw_is_refused(tokenizer, messages, said):
    """Rendered in silence, `None` or a Python list would be in the prompt: bad answers, and nobody knows why."""
    with pytest.raises(jinja2.TemplateError, match=said):
        rendered(tokenizer, TEMPLATES["paper"], messages)


@settings(max_examples=20)
@given(template)
def test_it_survives_its_file(tokenizer, tmp_path_factory, form):
    """Users load it from the model's folder, where line ends and blank ends of a file could be lost."""
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.chat_template = chat_template(form)
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template


@pytest.mark.parametrize(("scheme", "lead"), [("first", " "), ("always", ""), ("never", "")])
def test_a_space_before_the_first_word(scheme, lead):
    """CodeLlama's tokenizer (`first`) puts it before a text, not after a BOS in it: every first token would be new."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    bpe.train_from_iterator(
        ["[INST] add [/INST]"] * 9, trainers.BpeTrainer(special_tokens=["<s>", "</s>"], show_progress=False)
    )
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    _, ids = rendered(made, lead + TEMPLATES["codellama"], [user("add")])
    assert ids == prompt_ids(made, TEMPLATES["codellama"], ["add"])[0]
    if lead:
        assert ids != rendered(made, TEMPLATES["codellama"], [user("add")])[1]


def test_the_tokenizers_own_is_not_replaced():
    """`chat` is no text: taken for one, every prompt would be the word chat."""
    with pytest.raises(ValueError, match="needs text with"):
        chat_template("chat")
