"""Faults of networks, disks and objects: exact counts at the end, or a clear stop and a rerun that ends exactly.

All of them, with their rates and times, are benchmarks/reliability.py (`make soak`); here are two that stand for the others.
"""

import random
from pathlib import Path

import pyarrow as pa
import pytest

from raypipe.errors import DataError
from raypipe.part import commit_part, read_footer, read_part
from raypipe.repair import is_sound
from raypipe.store import Folder
from tests.faults import BY_NAME, SCENARIOS, flipped_data, make_world, meet

PART = "part-0000000-0000-0123456789ab-end.parquet"


@pytest.fixture
def folder(tmp_path):
    folder = Folder.at(str(tmp_path / "score-0123456789ab"))
    ids = pa.array([f"{n:032x}" for n in range(20)])
    for part in (PART, "part-0000001-0000-0123456789ab-end.parquet"):
        commit_part(folder, part, pa.table({"sample_id": ids, "ifd": [n / 7 for n in range(20)]}), counts={"ok": 20})
    return folder


def test_any_bit_flipped_is_found_or_harmless(folder):
    """Disks flip bits; one that is not found changes what a model learns, and one that crashes the reader names no object."""
    with open(folder.uri(PART), "rb") as file:
        whole = file.read()
    sound, footer, found = read_part(folder, PART), read_footer(folder, PART), 0
    for bit in random.Random(0).sample(range(8 * len(whole)), 400):
        folder.replace(PART, whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        try:
            assert read_part(folder, PART) == sound and read_footer(folder, PART) == footer
        except DataError as error:
            assert folder.uri(PART) in str(error) and "raypipe run CONFIG --repair score" in str(error)
            found += 1
    assert found > 100


def test_a_part_cut_anywhere_is_found(folder):
    """A copy that broke off must not be taken for a shorter part."""
    whole = folder.read(PART)
    for length in range(0, len(whole), 13):
        folder.replace(PART, whole[:length])
        with pytest.raises(DataError, match="--repair score"):
            read_part(folder, PART)
        assert not is_sound(PART, folder=folder)


def test_another_parts_bytes_are_found(folder):
    """A whole part under a wrong name has digests that fit its columns: only its own name tells."""
    _, other = folder.list()
    folder.replace(PART, folder.read(other))
    assert is_sound(other, folder=folder) and not is_sound(PART, folder=folder)
    with pytest.raises(DataError, match="another part's"):
        read_footer(folder, PART)


def test_a_column_that_nobody_asks_for_is_not_looked_at(folder):
    """Reading one column of a large part must not cost the reading of all."""
    folder.replace(PART, flipped_data(Path(folder.uri(PART)), "ifd"))
    assert len(read_part(folder, PART, ["sample_id"])) == 20
    with pytest.raises(DataError, match="--repair score"):
        read_part(folder, PART, ["ifd"])


def test_scenarios_have_names_of_their_own():
    assert len(BY_NAME) == len(SCENARIOS)


@pytest.fixture(scope="module")
def world(rgw, proxy, tmp_path_factory, random_model, embedder):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rgw.environment.items():
            patch.setenv(name, value)
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        yield make_world(tmp_path_factory.mktemp("faults"), rgw, proxy, random_model, embedder)
        proxy.clear()


def kept_its_promise(world, name):
    outcome = meet(world, BY_NAME[name])
    assert not outcome.wrong, "\n".join(outcome.wrong)
    return outcome


@pytest.mark.slow
def test_all_network_faults_at_once(world):
    """Of a few thousand requests some always fail: none may cost a row, a count, or the run."""
    assert sum(kept_its_promise(world, "mixed").fired.values()) > 50


@pytest.mark.slow
def test_damaged_parts_are_named_and_made_again_when_told(world):
    """Damage found by nobody changes results; a repair that makes everything again costs hours of GPUs."""
    kept_its_promise(world, "damaged")
