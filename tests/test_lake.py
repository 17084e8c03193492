import os
import pathlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import ConfigError, DataError, RaypipeError, Stopped, StorageError
from raypipe.lake import Slice, chain_digests, list_lake
from raypipe.store import storage_of
from tests.s3.fake import moto_bucket

SLICES = st.lists(
    st.builds(Slice, st.text(min_size=1, max_size=3), st.integers(0, 9), st.text(max_size=2)), min_size=1, max_size=8
)


@given(SLICES, SLICES)
def test_a_lake_that_grows_at_its_end_keeps_its_chain(old, new):
    """Otherwise a nightly run recomputes everything."""
    assert chain_digests(old + new)[: len(old)] == chain_digests(old)


@given(SLICES, SLICES)
def test_another_lake_has_another_digest(one, two):
    """Two lakes of one digest would share their parts."""
    assert (chain_digests(one)[-1] == chain_digests(two)[-1]) == (one == two)


TREE = [
    "a.jsonl",
    "a/x.jsonl",
    "a/deep/er/x.jsonl",
    "a/deep/x.jsonl.gz",
    "a-b/x.jsonl",
    "a0.jsonl",
    "ab/x1.jsonl",
    "b/x.jsonl",
    "b/y [1].jsonl",
    "b/empty.jsonl",
    "B.jsonl",
    "a b/x+y%20.jsonl",
    "ü/ö.jsonl",
    "lang=python/year=2025/x.jsonl",
    "lang=python/year=2026/x.jsonl",
    "lang=rust/year=2026/x.jsonl",
    "lang=/year=2026/x.jsonl",
    "z",
    "_SUCCESS",
    "_temporary/0/x.jsonl",
    ".hidden.jsonl",
    "a/.hidden/x.jsonl",
    "a/_committed_1",
    "a/deep/_started/x.jsonl",
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same tree twice: {"local": folder, "s3": prefix}. S3 gives five names a page."""
    folder = tmp_path_factory.mktemp("lake")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")
        with moto_bucket(monkeypatch, tmp_path_factory.mktemp("aws")):
            places = {"local": str(folder), "s3": "s3://lake/the/tree"}
            for root in places.values():
                for name in TREE:
                    write(f"{root}/{name}", "" if "empty" in name else "x")
            write("s3://lake/the/tree-beside/x.jsonl", "x")
            write("s3://lake/the/", "")  # as consoles mark a folder
            yield places


@pytest.fixture(params=["local", "s3"])
def root(request, places):
    return places[request.param]


@pytest.fixture(params=["local", "s3"])
def fresh(request, places, tmp_path):
    """Where a test may write."""
    return str(tmp_path) if request.param == "local" else f"s3://lake{tmp_path}"


def write(uri, text, mtime=None):
    if uri.startswith("s3://"):
        from raypipe import s3

        s3.client(None).put_object(Bucket="lake", Key=uri.removeprefix("s3://lake/"), Body=text.encode())
    else:
        pathlib.Path(uri).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(uri).write_text(text)
        if mtime:
            os.utime(uri, ns=(mtime, mtime))


def listed(root, *patterns, **options):
    lake = list_lake([f"{root}/{pattern}" if pattern else root for pattern in patterns], **options)
    assert all(piece.uri.startswith(f"{root}/") for piece in lake.slices)
    return [piece.uri[len(root) + 1 :] for piece in lake.slices]


SHOWN = sorted(name for name in TREE if not re.search(r"(^|/)[_.]", name))


def test_a_folder_is_all_below_it_by_name(root):
    """Markers and half-written files of Spark's would be read as data; another order would give all parts new names."""
    assert listed(root, "") == SHOWN


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a", ["a/deep/er/x.jsonl", "a/deep/x.jsonl.gz", "a/x.jsonl"]),
        ("a.jsonl", ["a.jsonl"]),
        ("z", ["z"]),
        ("*", ["B.jsonl", "a.jsonl", "a0.jsonl", "z"]),
        ("*.jsonl", ["B.jsonl", "a.jsonl", "a0.jsonl"]),
        ("?.jsonl", ["B.jsonl", "a.jsonl"]),
        ("[ab]*/x*.jsonl", ["a b/x+y%20.jsonl", "a-b/x.jsonl", "a/x.jsonl", "ab/x1.jsonl", "b/x.jsonl"]),
        ("[!a]/x.jsonl", ["b/x.jsonl"]),
        ("a?/*", ["ab/x1.jsonl"]),
        ("a/**", ["a/deep/er/x.jsonl", "a/deep/x.jsonl.gz", "a/x.jsonl"]),
        ("a/**/x.jsonl", ["a/deep/er/x.jsonl", "a/x.jsonl"]),
        ("**/*.gz", ["a/deep/x.jsonl.gz"]),
        ("**/deep/**/x.*", ["a/deep/er/x.jsonl", "a/deep/x.jsonl.gz"]),
        ("**/lang=rust/**", ["lang=rust/year=2026/x.jsonl"]),
        ("lang=*/year=2026/*", ["lang=/year=2026/x.jsonl", "lang=python/year=2026/x.jsonl", "lang=rust/year=2026/x.jsonl"]),
        ("b/y [[]1].jsonl", ["b/y [1].jsonl"]),
        ("a/***", ["a/x.jsonl"]),
        ("a/**.jsonl", ["a/x.jsonl"]),
        ("a**/x.jsonl", ["a-b/x.jsonl", "a/x.jsonl"]),
        ("ü/*", ["ü/ö.jsonl"]),
        ("**", SHOWN),
    ],
)  # fmt: skip
def test_globs(root, pattern, names):
    """The same path must mean the same files wherever the lake is; a lake is moved to S3 when it has grown."""
    assert listed(root, pattern) == names


@pytest.mark.parametrize(
    "pattern",
    [
        "no",
        "no/*",
        "a/x.json",
        "a/x.jsonl/*",
        "*.txt",
        "[",
        "a[",
        "[b-a]*",
        "A/**",
        "a?",
        "_SUCCESS*",
        "**/_temporary/**",
    ],
)
def test_nothing_found(root, pattern):
    """Exit code 2 before Ray starts, with the path; and a glob that matches a folder means it, not what is in it."""
    with pytest.raises(ConfigError) as caught:
        listed(root, "a.jsonl", pattern)
    said = str(caught.value)
    assert f"ingest.paths: {root}/{pattern}: no such file, and no file matches. Check" in said
    assert ("bucket and prefix" if root.startswith("s3") else os.getcwd()) in said


def test_what_is_named_is_meant_whatever_its_name(root):
    """Only what is below a path is passed over for its name."""
    assert listed(root, "_temporary", "a/_committed_1") == ["_temporary/0/x.jsonl", "a/_committed_1"]


def test_order_is_paths_as_configured_each_file_once(root):
    """A file that two globs match would be scored, and trained on, twice."""
    assert listed(root, "b/x.jsonl", "a", "**/x.jsonl", "b")[:5] == [
        "b/x.jsonl",
        "a/deep/er/x.jsonl",
        "a/deep/x.jsonl.gz",
        "a/x.jsonl",
        "a-b/x.jsonl",
    ]
    assert sorted(set(listed(root, "", "**", "*"))) == sorted(listed(root, "", "**", "*")) == SHOWN


@pytest.mark.parametrize(
    ("partitions", "names"),
    [
        ({"lang": ["python"]}, ["lang=python/year=2025/x.jsonl", "lang=python/year=2026/x.jsonl"]),
        ({"lang": ["python", "rust"], "year": ["2026"]}, ["lang=python/year=2026/x.jsonl", "lang=rust/year=2026/x.jsonl"]),
        ({"year": ["2025"]}, ["lang=python/year=2025/x.jsonl"]),
        ({"lang": [""]}, ["lang=/year=2026/x.jsonl"]),
        ({}, SHOWN),
    ],
)  # fmt: skip
def test_partitions(root, partitions, names):
    """A lake of all languages is read for one; what has no such partition at all is not of it."""
    assert listed(root, "", partitions=partitions) == names
    assert listed(root, "**", partitions=partitions) == names
    for name in names[:2]:
        assert listed(root, name, partitions=partitions) == [name]


@pytest.mark.parametrize("partitions", [{"lang": ["go"]}, {"language": ["python"]}, {"lang": ["pyth"]}])
def test_partitions_that_are_not_there(root, partitions):
    """A run over nothing would end well."""
    with pytest.raises(ConfigError, match=re.escape(f"ingest.partitions: {partitions}")):
        listed(root, "", partitions=partitions)


def test_a_bucket_as_a_lake(places):
    """Also without a prefix there are no markers in it, and the folder's marker is none of its files."""
    uris = [piece.uri for piece in list_lake(["s3://lake"]).slices]
    assert f"{places['s3']}/a.jsonl" in uris and not any("_temporary" in uri or uri.endswith("/") for uri in uris)
    globbed = list_lake(["s3://lake/the/*/x.jsonl", "s3://lake/*/tree/z", "s3://lake/**/B.jsonl"])
    assert [piece.uri[10:] for piece in globbed.slices] == ["the/tree-beside/x.jsonl", "the/tree/z", "the/tree/B.jsonl"]


@pytest.mark.parametrize("path", ["s3://no-such-bucket", "s3://no-such-bucket/a", "s3://no-such-bucket/*.jsonl"])
def test_no_such_bucket(places, path):
    """Exit code 4: nothing is wrong with the path as such."""
    with pytest.raises(StorageError, match=r"no-such-bucket.*NoSuchBucket.*storage\.endpoint") as caught:
        list_lake([path])
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("path", ["s3://", "s3:///x", "s3://*", "s3://la*/x", "s3://[ab]/x"])
def test_no_bucket(places, path):
    """A glob of buckets is understandable to want; it must end in a sentence."""
    with pytest.raises(RaypipeError, match="bucket"):
        list_lake([path])


def test_missing_and_empty_input(fresh):
    """Both are told before a cluster is paid for."""
    with pytest.raises(ConfigError, match=r"ingest\.paths.*nowhere.*no such file"):
        list_lake([f"{fresh}/nowhere"])
    write(f"{fresh}/empty.jsonl", "")
    with pytest.raises(DataError, match=r"1 files found are all empty.*empty\.jsonl"):
        list_lake([fresh])
    write(f"{fresh}/full.jsonl", "x")
    assert [piece.size for piece in list_lake([fresh]).slices] == [0, 1]


def test_a_changed_file_is_another_lake_from_there_on(fresh):
    """Of the same size, too; and parts of what comes before it are kept."""
    for name in "abc":
        write(f"{fresh}/{name}", "1", mtime=1)
    before = list_lake([fresh])
    assert list_lake([fresh]) == before
    write(f"{fresh}/b", "2", mtime=2)
    after = list_lake([fresh])
    assert [one == two for one, two in zip(before.chain, after.chain, strict=True)] == [True, False, False]
    assert before.digest != after.digest == after.chain[-1]


@pytest.mark.parametrize("now", ["2", "longer", ""], ids=["other", "longer", "shorter"])
def test_a_slice_that_changed_since_it_was_listed(fresh, now):
    """Its parts would bear the name of the old one."""
    write(f"{fresh}/a", "1", mtime=1)
    (piece,) = list_lake([fresh]).slices
    write(f"{fresh}/a", now, mtime=2)
    with pytest.raises(Stopped, match="changed since the lake was listed") as caught:
        storage_of(piece.uri).stream(piece.uri, piece.size, piece.version).read()
    assert caught.value.exit_code == 5


def test_a_slice_that_is_gone_since_it_was_listed(places, tmp_path):
    """On S3 it is told as a change."""
    write(f"s3://lake{tmp_path}/a", "1")
    (piece,) = list_lake([f"s3://lake{tmp_path}"]).slices
    storage_of(piece.uri).delete(piece.uri)
    with pytest.raises(Stopped, match="nothing there now"):
        storage_of(piece.uri).stream(piece.uri, piece.size, piece.version).read()


def test_a_quoted_partition(tmp_path):
    """Spark writes `c++` so; a config says what its author means."""
    (tmp_path / "lang=c%2B%2B").mkdir()
    (tmp_path / "lang=c%2B%2B" / "x.jsonl").write_bytes(b"{}\n")
    (piece,) = list_lake([str(tmp_path)], partitions={"lang": ["c++"]}).slices
    assert piece.uri.endswith("/lang=c%2B%2B/x.jsonl")
