import pathlib

import pytest

from raypipe.config import Config
from raypipe.config_file import all_keys, load_config
from raypipe.errors import ConfigError
from raypipe.experiment_file import load_experiment

PROJECT = pathlib.Path(__file__).parents[1]
MINIMAL = """
name: test
model: models/x
ingest: {paths: [lake]}
embed: {model: models/e}
storage: {root: root}
"""


@pytest.fixture
def load(tmp_path):
    def load(text=MINIMAL, *overrides):
        (tmp_path / "c.yaml").write_text(text)
        return load_config(tmp_path / "c.yaml", list(overrides))

    return load


def test_a_small_run_needs_five_keys(load):
    config = load()
    assert config.cluster.num_clusters == 10 and config.select.keep_fraction == 0.4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("select.keep_fracton=0.2", "select.keep_fracton: unknown key. Did you mean select.keep_fraction?"),
        ("sellect.keep_fraction=0.2", "sellect: unknown key. Did you mean select?"),
        ("keep_fraction=0.2", "keep_fraction: unknown key. Did you mean select.keep_fraction?"),
        ("select.keep_fraction=2", "select.keep_fraction: Input should be less than or equal to 1, got 2"),
        ("cluster.num_clusters='10'", 'cluster.num_clusters: Input should be a valid integer, got "10"'),
        ("select.strategy=best", "'paper', 'global_ifd'"),
        ("template=hello", "{instruction}"),
        ("score.template=hello", "{instruction}"),
        ("resources.embed.actors=[3, 1]", "[min, max] expected, got [3, 1]"),
        ("storage.root=gs://bucket/x", "gs://"),
        ("name=a/b", "name"),
        ("seed", "wanted section.key=value"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_faults_name_key_and_remedy(load, override, said):
    """An unknown key that is taken for nothing costs a GPU-day; its message must say what was meant."""
    with pytest.raises(ConfigError) as error:
        load(MINIMAL, override)
    assert said in str(error.value)


def test_all_faults_at_once(load):
    with pytest.raises(ConfigError) as error:
        load("name: x\nembed: {}\ningest: {paths: []}")
    assert all(key in str(error.value) for key in ("model", "embed.model", "ingest.paths", "storage"))


@pytest.mark.parametrize(
    ("text", "said"), [("a: 1\na: 2", "twice"), ("- a", "wanted a mapping"), ("a: [", "not valid YAML")]
)
def test_not_a_config(load, text, said):
    with pytest.raises(ConfigError, match=said):
        load(text)


def test_missing_file():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml.*cannot be read"):
        load_config("nowhere.yaml")


@pytest.mark.parametrize("number", ["5e-5", "5.0e-5", "0.00005", "5.E-5"])
def test_numbers_as_people_write_them(load, number):
    """PyYAML reads 5e-5 as a string."""
    assert load(MINIMAL, f"train.learning_rate={number}").train.learning_rate == 5e-5


def test_a_recorded_config_can_be_run_again(load, tmp_path):
    """The report tells its reader to do so."""
    config = load()
    (tmp_path / "again.yaml").write_text(config.model_dump_json())
    assert load_config(tmp_path / "again.yaml") == config


def test_override_of_an_empty_section(load):
    assert load(MINIMAL + "score:", "score.dtype=float32").score.dtype == "float32"


def test_override_replaces_a_list_whole(load):
    assert load(MINIMAL, "ingest.paths=[a, b]").ingest.paths == (
        f"{pathlib.Path('a').absolute()}",
        f"{pathlib.Path('b').absolute()}",
    )


def test_paths_are_absolute_and_models_may_be_hub_ids(load):
    """Actors run in other working directories."""
    config = load()
    assert config.storage.root.startswith("/") and config.model == "models/x"


def test_every_shipped_config_is_valid():
    """A config that ships broken is the first thing a new user meets."""
    configs = sorted((PROJECT / "jobs" / "configs").glob("*.yaml"))
    assert configs
    for path in configs:
        assert load_config(path).name == path.stem


def test_every_shipped_experiment_is_valid():
    """As far as goes without its models and data: arms, fractions and seeds make runs of configs that differ."""
    experiments = sorted((PROJECT / "jobs" / "experiments").glob("*.yaml"))
    assert experiments
    for path in experiments:
        _, cells = load_experiment(path)
        configs = [config.model_dump_json(exclude={"name"}) for cell in cells for config in cell.configs]
        assert len(set(configs)) == len(configs) == 93


def test_every_key_has_its_own_leaf_path():
    keys = all_keys(Config)
    assert len(keys) == len(set(keys)) and "resources.score.max_batch_tokens" in keys


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("storage.root=s3://bucket/runs/", "s3://bucket/runs"),
        ("storage.root=s3://bucket", "s3://bucket"),
        ("ingest.paths=[s3://b/x/**/*.gz, s3://b/y]", ("s3://b/x/**/*.gz", "s3://b/y")),
        ("model=s3://b/models/m/", "s3://b/models/m"),
        ("embed.model=s3://b/e", "s3://b/e"),
        ("score.model=s3://b/s", "s3://b/s"),
        ("storage.endpoint=http://minio:9000", "http://minio:9000"),
        ("storage.endpoint=https://s3.example.org/base", "https://s3.example.org/base"),
    ],
)
def test_places_on_s3_stay_as_they_are(load, override, value):
    """A URI taken for a relative path is a folder named s3: in the working directory."""
    config = load(MINIMAL, override)
    for name in override.partition("=")[0].split("."):
        config = getattr(config, name)
    assert config == value


@pytest.mark.parametrize("key", ["storage.root", "ingest.paths", "model", "embed.model", "score.model"])
@pytest.mark.parametrize("uri", ["gs://b/x", "https://host/x", "hf://org/model", "file:///x"])
def test_other_storage_is_refused_wherever_it_is_named(load, key, uri):
    """Otherwise it is a local path, and fails on some node, hours later."""
    with pytest.raises(ConfigError, match=f"{uri}: storage .* is not supported. Give a folder or s3://bucket/prefix"):
        load(MINIMAL, f"{key}=[{uri}]" if key == "ingest.paths" else f"{key}={uri}")


@pytest.mark.parametrize(
    "endpoint", ["https://user:password@host", "http://user@host:9000", "minio:9000", "s3://b", "http://", "http://a b"]
)
def test_an_endpoint_is_an_address_without_a_secret(load, endpoint):
    """The config is recorded with every run, and read by all who may see its report."""
    with pytest.raises(ConfigError, match=r"storage\.endpoint: ") as caught:
        load(MINIMAL, f"storage.endpoint='{endpoint}'")
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    ("partitions", "read"),
    [
        ("{lang: python, year: 2026}", {"lang": ("python",), "year": ("2026",)}),
        ("{lang: [python, 'c++'], year: [2025, '2026']}", {"lang": ("python", "c++"), "year": ("2025", "2026")}),
        ("{month: '01'}", {"month": ("01",)}),
        ("{}", {}),
    ],
)
def test_partitions_as_people_write_them(load, partitions, read):
    """In a name all values are text; 2026 in YAML is none."""
    config = load(MINIMAL, f"ingest.partitions={partitions}")
    assert config.ingest.partitions == read
    assert load(config.model_dump_json()).ingest.partitions == read


@pytest.mark.parametrize("value", ["[]", "null", "true", "1.5", "[[a]]", "{a: b}"])
def test_partitions_that_mean_nothing(load, value):
    """`year: 1.5` would match no file, `lang: []` none either, and `lang: no` is False in YAML."""
    with pytest.raises(ConfigError, match=r"ingest\.partitions\.lang"):
        load(MINIMAL, f"ingest.partitions={{lang: {value}}}")


def test_a_budget_takes_the_place_of_epochs(load):
    """Without one, folders that were trained before keep their names; with one, epochs decide nothing."""
    assert "budget" not in load().train.content() and load().train.content()["epochs"] == 3
    by_steps = load(MINIMAL, "train.budget={steps: 10}")
    assert by_steps.train.content()["budget"]["steps"] == 10
    assert by_steps.train.content() == load(MINIMAL, "train.budget={steps: 10}", "train.epochs=9").train.content()
    with pytest.raises(
        ConfigError, match=r"train.budget: got samples and steps of samples, target_tokens, steps, wanted one"
    ):
        load(MINIMAL, "train.budget={steps: 10, samples: 5}")


def test_an_override_changes_one_of_two_sections_that_an_anchor_makes_equal(load):
    anchored = "resources: {embed: &one {actors: [1, 1]}, score: *one}\n"
    config = load(MINIMAL + anchored, "resources.score.max_batch_tokens=512")
    assert config.resources.score.max_batch_tokens == 512 and config.resources.embed.actors == (1, 1)
