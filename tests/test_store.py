import os
import threading

import pytest

from raypipe.errors import StorageError
from raypipe.store import Folder


def test_put_once(tmp_path):
    """The first content stays: two drivers race harmlessly."""
    folder = Folder(str(tmp_path / "new" / "folder"))
    assert folder.list() == [] and not folder.has("a")
    assert folder.put("a", b"1") and not folder.put("a", b"2")
    assert folder.read("a") == b"1" and folder.list() == ["a"]


def test_of_many_writers_one_wins(tmp_path):
    folder, won = Folder(str(tmp_path)), []
    threads = [
        threading.Thread(target=lambda n=n: won.append(folder.put("x", bytes([n]) * 100_000))) for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 1 and len(set(folder.read("x"))) == 1 and len(os.listdir(tmp_path)) == 1


def test_replace_overwrites_whole(tmp_path):
    folder = Folder(str(tmp_path))
    folder.replace("r", b"1")
    folder.replace("r", b"22")
    assert folder.read("r") == b"22" and os.listdir(tmp_path) == ["r"]


def test_temporary_names_are_not_listed(tmp_path):
    (tmp_path / ".part.tmp").write_bytes(b"half")
    assert Folder(str(tmp_path)).list() == []


def test_a_file_in_the_way_is_a_clear_refusal(tmp_path):
    """Exit code 4, with the path and what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/x.*storage refuses.*choose another storage\.root"):
        Folder(str(tmp_path / "file")).put("x", b"")


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(StorageError, match="not there"):
        Folder(str(tmp_path)).read("gone")
    with pytest.raises(StorageError, match="not there"):
        Folder(str(tmp_path)).open("gone")
