"""The model card: what users gave cannot break out of it, nothing is in it that was not given, and its code runs."""

import ast
import re

import huggingface_hub
import peft
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from transformers import AutoModelForCausalLM, AutoTokenizer

from raypipe.config import TEMPLATES
from raypipe.ops.chat_template import chat_template
from raypipe.ops.hub import split_revision
from raypipe.ops.model_card import model_card

LEAST = {"name": "r", "base_model": "org/base"}
FULL = {
    **LEAST, "datasets": ["org/data"], "paths": ["/lake"], "rows_read": 75272, "samples": 74095, "kept": 26594,
    "strategy": "paper", "keep_fraction": 0.4, "num_clusters": 10, "seed": 0,
    "lora_r": 24, "lora_alpha": 48.0, "epochs": 3, "steps": 156, "samples_per_step": 512, "learning_rate": 5e-5,
    "schedule": "cosine to 0", "warmup_steps": 15, "max_length": 2048, "packing": "best_fit", "dtype": "bfloat16",
    "num_workers": 8, "template": TEMPLATES["deepseek"],
    "first_loss": 1.23456, "last_loss": 0.61, "held_out_samples": 741, "loss_before": 0.612, "loss_after": 0.541,
    "mean_difference": -0.0712, "standard_error": 0.00312,
    "cluster_losses": [
        {"cluster": n, "num_samples": 9 + n % 2, "loss_before": 1.5, "loss_after": 0.75} for n in range(25)
    ],
    "tokens_per_s": 41204.2, "target_tokens_per_s": 20000.0, "seconds": 6720.3, "peak_memory_bytes": 3 << 29,
    "device": "NVIDIA H100", "padding": 0.00213,
    "raypipe_version": "0.1.0", "commit": "c0ffee", "folders": ["ingest-1", "train-2"], "packages": {"torch": "2.13.0"},
}  # fmt: skip
SECTIONS = {
    "Data": {"datasets", "paths", "rows_read", "samples", "kept", "strategy", "keep_fraction", "num_clusters", "seed"},
    "Recipe": {"base_model"},
    "Metrics": {"first_loss", "last_loss", "held_out_samples", "loss_before", "loss_after", "mean_difference", "device",
                "cluster_losses", "tokens_per_s", "target_tokens_per_s", "seconds", "peak_memory_bytes", "padding"},
    "Provenance": {"raypipe_version", "commit", "folders", "packages"},
}  # fmt: skip
TEXTS = ["name", "base_model", "strategy", "schedule", "packing", "dtype", "template", "device", "commit"]
HOSTILE = ["`", "a`b``", "\n---\nlicense: mit\n---\n", "a | b", "\\|", "<script>", "```\n# no", "{{ 7 * 7 }}",
           "{% raw %}", "\u2028", "- a\n\n    b", "x: [", "\\", "'\"",
           "''' \"\"\"", "# no", "\r\n", "None", "null", "1.0"]  # fmt: skip
text = st.text(st.sampled_from("`ab\n |~\\-#*_<&'\"@"), min_size=1) | st.sampled_from(HOSTILE) | st.text(min_size=1)
present_or_not = {key: st.sampled_from([value, None]) for key, value in FULL.items() if key not in LEAST}


def front(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def tokens(card):
    return MarkdownIt().enable("table").parse(re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL))


def headings(card):
    """What Markdown takes for a heading, but the title, which is of names."""
    found = tokens(card)
    return [found[place + 1].content for place, token in enumerate(found) if token.type == "heading_open"][1:]


def code_in(card):
    return [token.content for token in tokens(card) if token.type == "fence"]


@given(st.fixed_dictionaries(dict.fromkeys(TEXTS, text)), st.lists(text, min_size=1, max_size=3), st.booleans())
@example(dict.fromkeys(TEXTS, "\x85"), ["\x85", "\U0001f600"], False)
def test_what_users_gave_stays_where_it_is_shown(texts, many, adapter):
    """A path must not end the front matter, set a licence, or add a section; the Hub's own reader takes the rest."""
    lists = {"paths": many, "datasets": many, "folders": many, "packages": dict.fromkeys(many, many[0])}
    card = model_card({**FULL, **texts, **lists, "adapter": adapter})
    found = front(card)
    assert found == huggingface_hub.ModelCard(card).data.to_dict()
    assert found["base_model"] == split_revision(texts["base_model"])[0] and found["datasets"] == many
    assert set(found) == {"base_model", "library_name", "pipeline_tag", "tags", "datasets"}
    assert headings(card) == ["What it is", "How to use it", *SECTIONS]
    assert [token.type for token in tokens(card)].count("table_open") == 1
    *_, template = [ast.parse(code) for code in code_in(card)]
    assert ast.literal_eval(template.body[0].value) == texts["template"]


@given(st.fixed_dictionaries({}, optional=present_or_not))
def test_what_is_absent_is_left_out(some):
    """A card with `None`, or with a heading over nothing, is what a broken run looks like."""
    card = model_card({**some, **LEAST})
    assert "None" not in card and "\n\n\n" not in card and not card.endswith("\n\n")
    present = {key for key, value in some.items() if value is not None}
    filled = [title for title, keys in SECTIONS.items() if title == "Recipe" or present & keys]
    assert headings(card) == ["What it is", "How to use it", *filled]
    told = [line for line in card.splitlines() if line.startswith("- ") and "Weights trained" not in line]
    assert all(any(line.startswith(less) for line in model_card(FULL).splitlines()) for less in told)


def test_every_key_is_explained():
    """The docstring is where callers look up what a number must be, and in which unit."""
    explained = set(re.findall(r"\w+", model_card.__doc__))
    assert {*FULL, "adapter"} <= explained and model_card({**FULL, "adapter": False}) == model_card(FULL)


def test_the_numbers_by_hand():
    """Readers choose models by these: a wrong unit or sign is worse than none."""
    card = model_card(FULL)
    for line in [
        "- Weights trained: LoRA, r 24, alpha 48, merged into the model",
        "- Rows read: 75,272",
        "- `keep_fraction`: 0.4",
        "- Seed: 0",
        "- Learning rate, at its peak: 5e-05",
        "- Training loss at the first step: 1.235 nats per token",
        "- Held-out loss after training: 0.541 nats per token",
        "- After minus before, mean over held-out samples: -0.0712 ± 0.00312 (standard error)",
        "- Tokens per second, all workers: 41,204.2",
        "- Peak memory of a worker: 1.50 GiB",
        "- Padding, of all positions: 0.213 %",
        "- Folders: `ingest-1`, `train-2`",
        "- Packages: `torch 2.13.0`",
    ]:
        assert f"\n{line}\n" in card
    assert "on 26,594 samples, selected of 75,272 rows, by raypipe." in card
    assert "- Weights trained: all\n" in model_card(LEAST) and "it takes no path" not in card
    assert "it takes no path" in model_card({**LEAST, "base_model": "/models/base"})


def test_at_most_twenty_clusters():
    """A run of 1,000 clusters must not bury its card; those with the most samples say most."""
    rows = [line.split(" | ") for line in model_card(FULL).splitlines() if re.match(r"\| \d", line)]
    wanted = [n for n in range(25) if n % 2] + [n for n in range(25) if not n % 2]
    assert [int(row[0].strip("| ")) for row in rows] == wanted[:20] and rows[0] == ["| 1", "10", "1.5", "0.75 |"]
    assert "of the 20 with the most held-out samples among 25:" in model_card(FULL)
    assert "of the 20" not in model_card({**FULL, "cluster_losses": FULL["cluster_losses"][:20]})


@pytest.mark.parametrize("figures", [{**LEAST, "keep_fractoin": 0.4}, {"name": "r"}, {**LEAST, "base_model": None}])
def test_an_unknown_key_is_refused(figures):
    """A misspelt figure would be missing from every card; a whole config, with what is in it, would go unnoticed."""
    with pytest.raises(ValueError, match=r"keep_fractoin|base_model"):
        model_card(figures)


@pytest.mark.parametrize("adapter", [False, True])
def test_its_code_answers(adapter, random_model, tmp_path, capsys):
    """It is the first thing that a reader tries."""
    tokenizer = AutoTokenizer.from_pretrained(random_model)
    tokenizer.chat_template = chat_template(TEMPLATES["deepseek"])
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(random_model)
    if adapter:
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    shown = code_in(model_card({**LEAST, "base_model": f"{random_model}", "adapter": adapter}))[0]
    exec(shown.replace('"DIR"', repr(str(tmp_path))).replace("=512", "=4"), names := {})
    assert names["output"].shape[1] == names["inputs"]["input_ids"].shape[1] + 4 and capsys.readouterr().out


def test_an_adapter_is_served_on_its_base():
    """vLLM takes the ranks that it lists, 16 unless told: an adapter of 24 fails without one that has room for it."""
    figures = {**FULL, "base_model": "org/base@main", "adapter": True}
    card = model_card(figures)
    wanted = "LLM('org/base', revision='main', tokenizer=\"DIR\", enable_lora=True, max_lora_rank=32)"
    assert wanted in code_in(card)[1] and front(card)["library_name"] == "peft" and "merged" not in card
    assert front(model_card(FULL))["library_name"] == "transformers" and 'LLM("DIR")' in code_in(model_card(FULL))[1]
