"""What is committed is what is read, of every kind of column that a stage writes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe.part import UNIQUE, Table, commit_part
from raypipe.store import Folder

COLUMNS = {
    "sample_id": pa.array(["a", None, "b", "ß"]),
    "selected": pa.array([True, False, None, True]),
    "ifd": pa.array([0.5, None, 2.0, -1e-300]),
    "embedding": pa.FixedSizeListArray.from_arrays(
        pa.array(np.arange(8, dtype=np.float16)), 2, mask=pa.array([False, True, False, False])
    ),
    "losses": pa.array([[1.5, None], [], None, [2.0]], pa.list_(pa.float32())),
    "input_ids": pa.array([[1, 2], [], None, [3]], pa.list_(pa.int32())),
    "sample_ids": pa.array([["x"], [], ["y", None], None]),
}


@pytest.mark.parametrize("num_rows", [0, 1, 4])
def test_every_kind_of_column_comes_back(tmp_path, num_rows):
    """A column that Parquet encodes otherwise than Arrow holds it would be another after a rerun."""
    folder, table = Folder(str(tmp_path)), pa.table(COLUMNS).slice(0, num_rows)
    commit_part(folder, "part.parquet", table, counts={})
    found = Table(folder, ("part.parquet",)).read("part.parquet").replace_schema_metadata()
    assert found.schema == table.schema and found.to_pylist() == table.to_pylist()


def test_floats_and_texts_have_no_dictionary(tmp_path):
    """It would hold nearly every value: a million embeddings took four times as long to read."""
    commit_part(Folder(str(tmp_path)), "part.parquet", pa.table(COLUMNS), counts={})
    group = pq.read_metadata(tmp_path / "part.parquet").row_group(0)
    encodings = {column.path_in_schema: column.encodings for column in map(group.column, range(group.num_columns))}
    floats = {"ifd", "embedding.list.element", "losses.list.element"}
    assert {path for path, names in encodings.items() if "BYTE_STREAM_SPLIT" in names} == floats
    others = {"selected", *UNIQUE}
    assert {path for path, names in encodings.items() if "RLE_DICTIONARY" in names} == set(encodings) - floats - others
