"""What every storage does, one test for all: files, and S3 as moto plays it. What S3 adds of its own is in tests/s3."""

import errno
import gzip
import io
import os
import pathlib
import pickle
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe import s3
from raypipe.errors import ConfigError, Stopped, StorageError
from raypipe.local import Local
from raypipe.s3 import S3
from raypipe.store import Folder, location
from tests.s3.fake import moto_bucket

ODD_NAMES = [
    "with space",
    " leading",
    "trailing ",
    "ümläut-日本-😀",
    "a+b",
    "100%",
    "%2F",
    "%20",
    "key=value",
    "a?b",
    "a?b=c&d",
    "a#b",
    "a&amp;b",
    "<tag>",
    "quote'\"",
    "back\\slash",
    "new\nline",
    "tab\tcarriage\r",
    "semi;colon:,@!$*()[1]{2}^|~`",
    "...dots",
    "-dash",
]
SHOWN = [name for name in ODD_NAMES if not name.startswith(".")]


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    """boto3's client. S3 gives seven names a page here, so that all listings are of several."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "7")
        with moto_bucket(monkeypatch, tmp_path_factory.mktemp("aws")) as direct:
            yield direct


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path, direct):
    """A folder that is not there yet."""
    return Folder.at(
        str(tmp_path / "new" / "folder") if request.param == "local" else f"s3://lake{tmp_path}/new/folder"
    )


def fill(folder, names, data=b"x"):
    """Without the cost of a commit."""
    for name in names:
        if isinstance(folder.storage, Local):
            path = pathlib.Path(folder.uri(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        else:
            s3.client(None).put_object(Bucket="lake", Key=folder.uri(name).removeprefix("s3://lake/"), Body=data)


def names_below(folder):
    return [found.uri[len(folder.path) + 1 :] for found in folder.walk()]


def test_put_once(folder):
    """The first content stays: two drivers race harmlessly."""
    assert folder.list() == [] and not folder.has("a") and names_below(folder) == []
    assert folder.put("a", b"1") and not folder.put("a", b"2")
    assert folder.read("a") == b"1" and folder.list() == ["a"] and folder.has("a")


def test_of_many_writers_one_wins(tmp_path):
    """For S3 see tests/s3: moto looks and puts in two steps."""
    folder, won = Folder(str(tmp_path)), []
    threads = [
        threading.Thread(target=lambda n=n: won.append(folder.put("x", bytes([n]) * 100_000))) for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 1 and len(set(folder.read("x"))) == 1 and len(os.listdir(tmp_path)) == 1


def test_replace_overwrites_whole(folder):
    """A run file is read while it is written; a shorter one must not end in the old one's tail."""
    for data in (b"1", b"22", b"", b"3"):
        folder.replace("r", data)
        assert folder.read("r") == data
    assert names_below(folder) == ["r"]


def test_empty_objects(folder):
    """An empty file is an object: has() of it is true, and it can be read by every way."""
    assert folder.put("e", b"") and not folder.put("e", b"2")
    (found,) = folder.walk()
    assert folder.has("e") and folder.find("e") == b"" and found.size == 0
    with folder.open("e") as file, folder.storage.stream(found.uri, 0, found.version) as stream:
        assert file.read() == stream.read() == b"" and file.seek(0, 2) == 0


@pytest.mark.parametrize("size", [0, 1, 9 << 20], ids=["empty", "small", "several requests"])
def test_create_puts_a_file_of_any_size(folder, size):
    """Models are of gigabytes; boto3 sends what is over 8 MiB in pieces."""
    data = os.urandom(size)
    folder.replace("m", b"old")
    with folder.create("m") as file:
        file.write(data[: size // 2])
        file.write(data[size // 2 :])
    assert folder.read("m") == data and names_below(folder) == ["m"]


def test_create_of_a_file_that_its_writer_closes(folder):
    """torch does."""
    with folder.create("m") as file:
        file.write(b"1")
        file.close()
    assert folder.read("m") == b"1"


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_create_that_fails_puts_nothing(folder, before):
    """Half a checkpoint under the name of a whole one is loaded by the next run."""
    if before is not None:
        folder.replace("m", before)
    with pytest.raises(KeyError), folder.create("m") as file:
        file.write(b"half")
        raise KeyError("of the writer")
    assert folder.find("m") == before and names_below(folder) == ([] if before is None else ["m"])


def test_a_create_for_which_there_is_no_room(folder):
    """Also S3 goes by way of a file here: a full /tmp must be said, not thrown."""
    with pytest.raises(StorageError, match=r"new/folder/m.*disk is full"), folder.create("m") as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not folder.has("m")


def test_what_is_not_there(folder):
    """Each of these is asked for every part of every run."""
    fill(folder, ["sub/x"])
    for name in ("gone", "sub/gone", "gone/x", "sub"):
        assert folder.find(name) is None and not folder.has(name)
        with pytest.raises(StorageError, match=f"{name}.*not there"):
            folder.read(name)
    with pytest.raises(StorageError, match=r"gone.*not there"):
        folder.open("gone")
    assert (folder / "gone").list() == [] and list((folder / "gone").walk()) == []


def test_deleting(folder):
    """Of two that tidy up, the second finds nothing left to do."""
    folder.put("a/x", b"1")
    folder.put("a/y", b"2")
    folder.delete("a/x")
    folder.delete("a/x")
    folder.delete("b/never")
    assert names_below(folder) == ["a/y"]
    folder.delete("a/y")
    assert names_below(folder) == [] and folder.list() == [] and (folder / "a").list() == []
    assert folder.put("a/x", b"3") and folder.read("a/x") == b"3"


def test_names_are_of_objects_and_folders(folder):
    """A listing tells which parts are done, and which stages there are; a prefix tells one slice's parts from all."""
    parts = [f"part-{number:04d}" for number in range(20)]
    fill(folder, [*parts, "manifest-1", "sub/part-x", "sub/deeper/y", "part-sub/z"])
    fill(Folder(folder.path + "er", folder.storage), ["part-beside"])
    assert folder.list() == sorted([*parts, "manifest-1", "sub", "part-sub"])
    assert folder.list("part-") == sorted([*parts, "part-sub"])
    assert folder.list("part-001") == parts[10:20] and folder.list("part-0003") == ["part-0003"]
    assert folder.list("nothing") == []
    assert (folder / "sub").list() == ["deeper", "part-x"]


@pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
def test_more_names_than_a_page_holds(folder, monkeypatch):
    """S3 gives a thousand at once: part 1,001 would be made again in every run, and not be trained on."""
    monkeypatch.delenv("MOTO_S3_DEFAULT_MAX_KEYS", raising=False)
    names = [f"part-{number:05d}" for number in range(1003)]
    fill(folder, names)
    assert folder.list() == names and names_below(folder) == names and folder.list("part-01") == names[1000:]


def test_a_walk_shows_everything_below_by_name(folder):
    """`raypipe verify` and a model's digest rest on it; a mock of another order would hide what S3 gives."""
    names = ["a.txt", "a/x", "a/b/y", "a/b.z", "a0", "b", "B", "ü/q", "zz/1/2/3/4"]
    fill(folder, names, b"12")
    fill(Folder(folder.path + "-beside", folder.storage), ["no"])
    found = list(folder.walk())
    assert [piece.uri for piece in found] == [folder.uri(name) for name in sorted(names)]
    assert all(piece.size == 2 and piece.version and -5 < piece.age_s < 60 for piece in found)
    assert names_below(folder / "a") == ["b.z", "b/y", "x"]
    assert folder.storage.find(found[0].uri).version == found[0].version


@pytest.mark.parametrize("name", SHOWN)
def test_odd_names(folder, name):
    """Lakes have the names that people gave them. A key cut at its ? is another object."""
    assert folder.put(name, b"1") and not folder.put(name, b"2") and folder.put(f"{name} sub/{name}", b"3")
    assert folder.list() == sorted([name, f"{name} sub"]) and folder.list(name) == folder.list()
    assert names_below(folder) == sorted([name, f"{name} sub/{name}"])
    (found, deeper) = sorted(folder.walk(), key=lambda found: len(found.uri))
    assert found.uri == folder.uri(name) and folder.read(name) == b"1" and folder.has(name)
    assert folder.storage.stream(found.uri, 1, found.version).read() == b"1"
    with folder.open(name) as file:
        assert file.read() == b"1"
    with folder.create(name) as file:
        file.write(b"4")
    assert folder.read(name) == b"4" and folder.storage.get(deeper.uri) == b"3"
    folder.delete(name)
    assert folder.list() == [f"{name} sub"]


def test_versions_change_with_the_content(folder):
    """Or another lake would come under the name of the old one."""
    folder.replace("a", b"1")
    before = folder.storage.find(folder.uri("a"))
    folder.replace("a", b"2")
    after = folder.storage.find(folder.uri("a"))
    assert before.version != after.version and before.size == after.size


def test_random_access(folder):
    """A Parquet reader seeks to the end, then to what it needs: neither may cost the whole file."""
    data = os.urandom(300_000)
    folder.put("f", data)
    with folder.open("f") as file:
        assert file.seekable() and file.readable() and not file.writable()
        assert file.seek(-5, io.SEEK_END) == 299_995 and file.read() == data[-5:] and file.read() == b""
        assert file.seek(10) == 10 and file.read(5) == data[10:15] and file.tell() == 15
        assert file.seek(100_000, io.SEEK_CUR) == 100_015 and file.read(100_000) == data[100_015:200_015]
        buffer = bytearray(7)
        assert file.readinto(buffer) == 7 and bytes(buffer) == data[200_015:200_022]
        assert file.seek(400_000) == 400_000 and file.read(1) == b""
        with pytest.raises((OSError, ValueError)):
            file.seek(-1)
        file.seek(0)
        assert file.read() == data


def test_parquet_over_it(folder):
    """As `read_footer` and `raypipe.read` use it."""
    table = pa.table({"x": list(range(10_000)), "y": [str(n) for n in range(10_000)]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=1000)
    folder.put("p", sink.getvalue().to_pybytes())
    with folder.open("p") as file:
        assert pq.read_metadata(file).num_row_groups == 10
        assert pq.ParquetFile(file).read_row_group(7, ["x"])["x"].to_pylist() == list(range(7000, 8000))
        assert pq.read_table(file) == table


def test_a_stream_in_several_requests(folder, monkeypatch):
    """Lines of a compressed lake cross the borders between requests, and the last block is not full."""
    monkeypatch.setattr(s3, "BLOCK_BYTES", 1000)
    lines = [os.urandom(20).hex().encode() + b"\n" for _ in range(500)]
    folder.put("plain", b"".join(lines))
    folder.put("l.gz", gzip.compress(b"".join(lines[:250])) + gzip.compress(b"".join(lines[250:])))
    for name, opened in (("plain", lambda raw: raw), ("l.gz", lambda raw: gzip.GzipFile(fileobj=raw))):
        found = folder.storage.find(folder.uri(name))
        with folder.storage.stream(found.uri, found.size, found.version) as raw:
            assert list(opened(raw)) == lines


@pytest.mark.parametrize("read", [lambda file: file.read(), list], ids=["whole", "by line"])
@pytest.mark.parametrize("when", ["before", "while"])
def test_a_stream_of_another_object_than_the_one_listed(folder, monkeypatch, read, when):
    """Half of one file and half of another would be trained on under the name of the first."""
    monkeypatch.setattr(s3, "BLOCK_BYTES", 8192)
    fill(folder, ["a"], b"old\n" * 1_000_000)
    found = folder.storage.find(folder.uri("a"))

    def change():
        fill(folder, ["a"], b"new\n" * 1_000_000)
        if isinstance(folder.storage, Local):
            os.utime(found.uri, ns=(1, 1))  # the clock of some file systems is coarse

    def ask():
        if when == "before":
            change()
        with folder.storage.stream(found.uri, found.size, found.version) as file:
            assert file.readline() == b"old\n"
            change()
            read(file)

    with pytest.raises(Stopped, match=f"a: changed since the lake was listed .version {found.version} then"):
        ask()


def test_folders_go_to_other_processes(folder):
    """Every task of Ray's gets one."""
    folder.put("a", b"1")
    copy = pickle.loads(pickle.dumps(folder / "sub"))
    assert copy == folder / "sub" and copy.name == "sub"
    copy.put("b", b"2")
    assert folder.read("sub/b") == b"2"


def test_a_whole_bucket(direct):
    """storage.root: s3://my-bucket is what people try first; keys must not begin with a slash then."""
    direct.create_bucket(Bucket="whole")
    folder = Folder.at("s3://whole/")
    folder.put("a", b"1")
    (folder / "sub").put("b", b"2")
    assert [found["Key"] for found in direct.list_objects_v2(Bucket="whole")["Contents"]] == ["a", "sub/b"]
    assert folder.list() == ["a", "sub"] and folder.list("s") == ["sub"] and names_below(folder) == ["a", "sub/b"]


def test_markers_of_folders_are_no_objects(direct):
    """Consoles and rclone put an empty object `folder/`; taken for a file it is a part that cannot be read."""
    for key in ("marked/", "marked/sub/", "marked/sub/x"):
        direct.put_object(Bucket="lake", Key=key)
    folder = Folder.at("s3://lake/marked")
    assert folder.list() == ["sub"] and (folder / "sub").list() == ["x"] and names_below(folder) == ["sub/x"]


def test_temporary_names_are_not_listed(tmp_path):
    """A writer that was killed leaves half a part behind."""
    (tmp_path / ".part.tmp").write_bytes(b"half")
    folder = Folder(str(tmp_path))
    assert folder.list() == [] and list(folder.walk()) == []
    assert [found.uri for found in Local().walk(str(tmp_path), hidden=True)] == [str(tmp_path / ".part.tmp")]


def test_a_walk_beside_one_who_tidies_up(tmp_path, monkeypatch):
    """A temporary file of a living writer is gone a moment after it was listed."""
    for name in "abc":
        (tmp_path / name).write_text(name)
    walk = Folder(str(tmp_path)).walk()
    first = next(walk)
    (tmp_path / "b").unlink()
    assert [os.path.basename(found.uri) for found in (first, *walk)] == ["a", "c"]


def test_a_folder_that_cannot_be_looked_into_is_no_empty_one(tmp_path, monkeypatch):
    """os.walk passes it over in silence: parts of somebody else would be missing, and nobody told."""
    (tmp_path / "sub").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        list(Folder(str(tmp_path)).walk())


def test_deleting_where_the_folder_must_stay(tmp_path, monkeypatch):
    """The folder is somebody else's: the object is gone all the same."""

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr("os.rmdir", refuse)
    (tmp_path / "x").write_text("x")
    Folder(str(tmp_path)).delete("x")
    assert not (tmp_path / "x").exists()


def test_a_disk_that_fails_while_a_file_is_read(tmp_path, monkeypatch):
    """A network file system that goes away is exit code 4, not a traceback."""
    (tmp_path / "x").write_text("x" * 10)
    found = Local().find(str(tmp_path / "x"))
    file = Local().stream(found.uri, found.size, found.version)
    with file:
        os.dup2(folder := os.open(tmp_path, os.O_RDONLY), file.fileno())
        os.close(folder)
        for read in (lambda: file.read(1), file.read):
            with pytest.raises(StorageError, match="x: storage refuses: Is a directory"):
                read()


def test_a_file_in_the_way_is_a_clear_refusal(tmp_path):
    """Exit code 4, with the path and what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/x.*storage refuses.*choose another storage\.root"):
        Folder(str(tmp_path / "file")).put("x", b"")


@pytest.mark.parametrize("path", ["gs://b/x", "https://host/x", "file:///x", "S3://b/x", "abfs://c@account/x"])
def test_storage_that_is_not_spoken(path):
    """Taken for a local path, gs:// would be a folder of that name on some node's disk."""
    with pytest.raises(ConfigError, match=r"is not supported.*s3://bucket/prefix"):
        location(path)


@pytest.mark.parametrize(
    ("path", "storage"),
    [("s3://b/x/", S3("http://e")), ("s3://b", S3("http://e")), ("/x//y/", Local()), ("x", Local())],
)
def test_where_a_folder_is(path, storage):
    """The same folder spelt in two ways would be computed twice."""
    folder = Folder.at(path, "http://e")
    assert folder.storage == storage and not folder.path.endswith("/") and Folder.at(folder.path, "http://e") == folder
