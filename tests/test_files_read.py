from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowmem_seq.files import LARGEST_JSON_BYTES, read_json, read_limited, sha256_of, write_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON)
def test_json_comes_back_as_it_went(tmp_path: Path, value: object) -> None:
    path = tmp_path / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert path.read_bytes().endswith(b"\n")


def test_json_that_others_could_not_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": math.nan})
    assert read_json(path) == {"loss": 1.0}


@pytest.mark.parametrize(
    ("prepare", "error"),
    [
        (lambda path: None, FileNotFoundError),
        (lambda path: path.write_bytes(b"{"), json.JSONDecodeError),
        (lambda path: path.write_bytes(b"\xff"), UnicodeDecodeError),
        (lambda path: path.write_bytes(b"[" * 100_000), ValueError),
        (lambda path: path.mkdir(), IsADirectoryError if os.name == "posix" else PermissionError),
    ],
)
def test_what_is_no_json_raises(tmp_path: Path, prepare: Callable[[Path], object], error: type[Exception]) -> None:
    prepare(tmp_path / "value.json")
    with pytest.raises(error):
        read_json(tmp_path / "value.json")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1])
def test_sha256_is_that_of_the_bytes(tmp_path: Path, size: int) -> None:
    content = b"ab" * size
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_no_more_is_read_than_anything_of_its_kind_holds(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    assert read_limited(path, 4) == b"1234"
    with pytest.raises(ValueError, match="file has over 3 bytes"):
        read_limited(path, 3)
    assert read_json(path, 4) == 1234
    with pytest.raises(ValueError, match="file has over 3 bytes"):
        read_json(path, 3)
    with path.open("wb") as file:
        file.truncate(LARGEST_JSON_BYTES + 1)
    with pytest.raises(ValueError, match=f"file has over {LARGEST_JSON_BYTES:,} bytes"):
        read_json(path)
