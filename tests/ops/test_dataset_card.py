"""The dataset card: what users gave cannot break out of it, and the Hub's own reader takes it."""

import json

import huggingface_hub
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from raypipe.config import Config, Select
from raypipe.ops import dataset_card, formats

HOSTILE = [
    "`",
    "a`b``",
    "---\nlicense: mit\n---",
    "| a |",
    "<script>",
    "```\n# no",
    "{{ 7 * 7 }}",
    "\u2028",
    "- a\n\n    b",
    "x: [",
    "\\",
]
text = st.text(st.sampled_from("`ab\n |~\\-#*_<&"), min_size=1) | st.sampled_from(HOSTILE) | st.text(min_size=1)


def account(**changes):
    given = {"paths": ["/lake"], "carry": ["licence"], **changes.pop("ingest", {})}
    tree = {
        "name": "t", "model": "m", "ingest": given, "embed": {"model": "e"}, "storage": {"root": "/r"}, **changes.pop("config", {}),
    }  # fmt: skip
    config = Config.model_validate_json(json.dumps(tree))
    form = changes.get("format", "parquet")
    counts = {
        "ingest": {"ok": 90, "not_json": 10},
        "clean": {"ok": 80, "duplicate": 10},
        "score": {"ok": 70, "truncated": 5, "non_finite": 5},
        "select": {"duplicate": 10, "selected": 30, "held_out": 8, "non_finite": 4, "below_cut": 38},
    }
    manifests = {stage: {"counts": one} for stage, one in counts.items()}
    manifests["score"] |= {"config": {"score": {"rule": "exact", "on_overflow": "truncate"}}}
    manifests["cluster"] = {"counts": {}, "summary": {"cluster_sizes": [40, 40]}}
    manifests["select"] |= {"lake": "abc", "finished": "2026-11-27T10:00:00Z", "packages": {"raypipe": "0.1.0"}}
    return {
        "config": config,
        "settings": config.model_dump(mode="json", exclude={"storage", "resources"}),
        "format": form,
        "features": formats.features(form, config.ingest.carry),
        "splits": {"train": {"samples": 30, "shards": 2, "bytes": 3000}, "test": {"samples": 8, "shards": 1, "bytes": 800}},
        "manifests": manifests,
        "folders": ["ingest-1", "select-2"],
        "licences": {"licence": [("MIT", 20), (None, 10)]},
        **changes,
    }  # fmt: skip


def headings(card):
    """What Markdown takes for a heading."""
    tokens = MarkdownIt().parse(card.split("---\n", 2)[2])
    return [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]


@given(text, text, st.sampled_from(formats.FORMATS))
def test_what_users_gave_stays_where_it_is_shown(one, other, form):
    """A path or a licence from a lake must not end the front matter, set a licence of its own, or add a section."""
    usual = headings(dataset_card.render(account(format=form)))
    card = dataset_card.render(
        account(
            format=form,
            config={"model": one, "template": f"{other}{{instruction}}"},
            ingest={"paths": [one, other], "carry": [f"x{one}"]},
            licences={other: [(one, 20), (None, 10)]},
        )
    )
    assert headings(card) == usual and len(usual) == 6
    front = huggingface_hub.DatasetCard(card).data.to_dict()
    assert front["license"] == "other" and front["dataset_info"]["splits"][0]["num_examples"] == 30
    names = [feature["name"] for feature in front["dataset_info"]["features"]]
    assert names == [feature["name"] for feature in formats.features(form, [f"x{one}"])]


@given(text)
def test_a_code_span_is_one_of_its_text(given):
    """What is shown is what was given, in one span, whatever backticks are in it."""
    if not " ".join(given.split()):
        return
    inline = MarkdownIt().parse(f"- {dataset_card.code(given)}")[3]
    assert [child.type for child in inline.children] == ["code_inline"]
    assert inline.children[0].content == " ".join(given.split()).replace("\0", "\ufffd")


def test_every_row_is_in_one_line():
    """A card whose numbers do not add up is not believed."""
    card = dataset_card.render(account())
    table = card.split("| rows | what")[1].split("## How")[0].splitlines()[2:]
    numbers = [int(line.split("|")[1]) for line in table if line]
    assert sum(numbers) == 100 and "100 rows were read; 80 were samples; 75 of these have a score" in card
    assert "- 20 of `MIT`\n- 10 of no value" in card
    many = account(licences={"licence": [(f"L{n}", 2) for n in range(60)]})
    assert "- 2 of `L49`\n- 20 of 10 others\n" in dataset_card.render(many)


@pytest.mark.parametrize(
    ("samples", "category"),
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (100_000, "100K<n<1M"),
        (10**9, "1B<n<10B"),
        (10**12, "n>1T"),
    ],
)
def test_size_category(samples, category):
    """The Hub refuses a card with a category that it does not know."""
    assert dataset_card.size_category(samples) == category


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, "In each of the 4 clusters the samples with an IFD of at least 0 and below 1 were taken with the highest IFD first; the first 40 % of them were kept."),
        ({"strategy": "random", "num_samples": 1000}, "In the whole lake the samples with an IFD of at least 0 and below 1 were taken in an order drawn with seed 7; as many of the first as make 1,000 samples in all, everywhere the same share were kept."),
        ({"strategy": "column", "column": "q", "per": "l", "min_ifd": 0.2, "max_ifd": 0.9, "fraction_of": "cluster", "keep_fraction": 0.07},
         "In the whole lake, and in it for every value of `l` the samples with an IFD of at least 0.2 and below 0.9 were taken with the highest `q` first; as many of the first as are 7 % of all samples there were kept."),
        ({"strategy": "longest", "num_tokens": 5000}, "In the whole lake the samples with an IFD of at least 0 and below 1 were taken with the longest responses first; as many of the first as make 5,000 tokens in all, everywhere the same share were kept."),
    ],
)  # fmt: skip
def test_the_rule_in_words(keys, wanted):
    """A reader of the card must not be told another selection than was made."""
    assert dataset_card.rule_words(Select.model_validate(keys), 7, 4) == wanted


@pytest.mark.parametrize("form", formats.FORMATS)
@pytest.mark.parametrize("template", ["chat", "alpaca", "it's {instruction}\n```\n"])
def test_the_code_it_shows_is_python(form, template):
    """It is the first thing that a reader tries. Rows become what TRL reads, by the template of the run."""
    splits = {"train": {"samples": 30, "shards": 2, "bytes": 3000}}
    card = dataset_card.render(account(format=form, config={"template": template}, splits=splits))
    assert "split: test" not in card and "- held out" not in card
    blocks = [token.content for token in MarkdownIt().parse(card) if token.type == "fence" and token.info == "python"]
    assert len(blocks) == (1 if form == "messages" else 2)
    if form != "messages":
        exec(blocks[1].split("train = ")[0], shown := {})
        row = shown["to_prompt"]({"instruction": "I", "output": "R", "response": "R"})
        text = account(config={"template": template})["config"].template
        chat = {"prompt": [{"role": "user", "content": "I"}], "completion": [{"role": "assistant", "content": "R"}]}
        assert row == (chat if text == "chat" else {"prompt": text.replace("{instruction}", "I"), "completion": "R"})


def test_the_settings_are_a_config():
    """Who makes it again pastes them: keys and values as the file has them, no storage, nothing of this cluster."""
    card = dataset_card.render(account())
    settings = yaml.safe_load(card.rsplit("```yaml\n", 1)[1].rsplit("```", 1)[0])
    again = Config.model_validate_json(json.dumps({**settings, "storage": {"root": "/r"}}))
    assert again == account()["config"] and not {"storage", "resources"} & settings.keys()


def test_what_was_given_is_not_said_to_be_computed():
    """A card that names a model which never saw the rows would be believed."""
    own = {"embed": {"given": ["/mine/e"]}, "cluster": {"given": ["/mine/c"]}, "score": {"given": ["/mine/s.parquet"]}}
    card = dataset_card.render(account(config=own))
    for path in ("/mine/e", "/mine/c", "/mine/s.parquet"):
        assert f"with another tool, given as rows of `{path}`" in card
    assert "with the template below" not in card and "with the template below" in dataset_card.render(account())
