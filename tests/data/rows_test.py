"""Reading rows: every error message includes file and line."""

import csv
import gzip
import json
import re
import sys
import types

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srl_jax.data.rows import hub_rows, is_local, json_lines, local_rows
from srl_jax.errors import UserError


def test_json_lines_accepts_bom_crlf_and_blank_lines(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": "\xc3\xa9"}\n\n')
  assert list(json_lines(path)) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": "é"})]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", r"a.jsonl is empty"),
    (b"\n \n", r"a.jsonl is empty"),
    (b'{"a": 1}\n{"a": \n', r"a.jsonl:2: .*Expecting value"),
    (b'{"a": ' + b"[" * 100_000, r"a.jsonl:1: .*recursion"),
    (b'{"a": 1}\n\n{"a": "\xff"}\n', r"a.jsonl:3: .*'utf-8' codec"),
    (b"[1, 2]\n", r"a.jsonl:1: .*list"),
  ],
)
def test_json_lines_refuses_broken_files(tmp_path, content, message):
  path = tmp_path / "a.jsonl"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    list(json_lines(path))


def test_json_lines_refuses_a_missing_file(tmp_path):
  with pytest.raises(ValueError, match="nope.jsonl"):
    next(json_lines(tmp_path / "nope.jsonl"))


def test_hub_rows_yields_rows_and_names_errors(monkeypatch):
  def load_dataset(name, *, split):
    if name == "gone":
      raise ConnectionError("no route\nto the hub")
    return [{"question": f"{name} {split}"}]

  monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
  assert list(hub_rows("a/b", "test")) == [("a/b[test] row 0", {"question": "a/b test"})]
  with pytest.raises(ValueError, match="'gone' .*no route to the hub"):
    next(hub_rows("gone", "train"))


ROWS = [{"q": "2 + 3?", "n": "5"}, {"q": 'a "b",\nc é', "n": "007"}]


def _write(folder, form):
  """A file or folder with ROWS in that form."""
  lines = "".join(json.dumps(row) + "\n" for row in ROWS)
  path = folder / f"rows.{form}"
  if form.endswith(".gz"):
    inner = _write(folder, form.removesuffix(".gz"))
    path.write_bytes(gzip.compress(inner.read_bytes()))
  elif form in ("jsonl", "ndjson"):
    path.write_text(lines)
  elif form == "json":
    path.write_text(json.dumps(ROWS, indent=2))
  elif form in ("csv", "tsv"):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
      writer = csv.DictWriter(file, ["q", "n"], delimiter="\t" if form == "tsv" else ",")
      writer.writeheader()
      writer.writerows(ROWS)
  else:
    dataset = datasets.Dataset.from_list(ROWS)
    if form == "parquet":
      dataset.to_parquet(path)
    elif form == "saved":
      dataset.save_to_disk(path)
    elif form == "saved_dict":
      datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(path)
    elif form == "clone":
      (path / "data").mkdir(parents=True)
      dataset.to_parquet(path / "data" / "train-00000-of-00001.parquet")
      (path / "README.md").write_text("---\nlicense: mit\n---\n")
  return path


FILES = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "jsonl.gz", "json.gz", "csv.gz"]


@pytest.mark.parametrize("form", [*FILES, "saved", "saved_dict", "clone"])
def test_every_form_has_the_same_rows(tmp_path, monkeypatch, form):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  path = _write(tmp_path, form)
  found = list(local_rows(path, "train"))
  assert [row for _, row in found] == ROWS
  places = [place for place, _ in found]
  assert len(set(places)) == 2 and all(place.startswith(str(path)) for place in places)


@pytest.mark.parametrize("form", FILES)
def test_a_damaged_file_is_named(tmp_path, form):
  path = _write(tmp_path, form)
  data = path.read_bytes()
  path.write_bytes(data[: len(data) - 7])
  with pytest.raises(UserError, match=re.escape(str(path))):
    list(local_rows(path))


@pytest.mark.parametrize("form", ["csv", "parquet", "json", "jsonl.gz"])
def test_a_file_without_rows_is_refused(tmp_path, form):
  path = tmp_path / f"rows.{form}"
  if form == "parquet":
    datasets.Dataset.from_dict({"q": []}).to_parquet(path)
  else:
    text = {"csv": b"q,n\n", "json": b"[]", "jsonl.gz": gzip.compress(b"\n")}[form]
    path.write_bytes(text)
  with pytest.raises(UserError, match="is empty"):
    list(local_rows(path))


def test_a_csv_row_with_another_number_of_fields_is_named(tmp_path):
  path = tmp_path / "rows.csv"
  path.write_text("q,n\na,1\nb,2,3\n")
  with pytest.raises(UserError, match="rows.csv:3.*2"):
    list(local_rows(path))


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
  (tmp_path / "x").mkdir()
  with pytest.raises(UserError, match="split 'train'"):
    list(local_rows(tmp_path / "x"))


def test_names_of_files_are_local_even_if_they_are_missing(tmp_path):
  assert all(map(is_local, ["a.parquet", "a.csv.gz", str(tmp_path)]))
  assert not is_local("simplescaling/s1K-1.1")


def test_suffixes_in_capitals_count(tmp_path):
  path = tmp_path / "ROWS.CSV"
  path.write_bytes(b"q,n\na,b\n")
  packed = tmp_path / "ROWS.JSONL.GZ"
  packed.write_bytes(gzip.compress(b'{"q": "a"}\n'))
  assert list(local_rows(path)) == [(f"{path}:2", {"q": "a", "n": "b"})]
  assert list(local_rows(packed)) == [(f"{packed}:1", {"q": "a"})]
  assert is_local("missing/ROWS.JSONL.GZ")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path, form):
  path = tmp_path / f"rows.{form}"
  table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["q", "q"])
  path.write_bytes(b"q,q\na,b\n") if form == "csv" else pq.write_table(table, path)
  with pytest.raises(UserError, match="'q'"):
    list(local_rows(path))


@pytest.mark.parametrize("column", ["text", "date"])
def test_parquet_values_that_python_cannot_hold_are_refused(tmp_path, column):
  path = tmp_path / "rows.parquet"
  not_utf8 = pa.array([b"\xff\xfe"]).view(pa.string())
  values = not_utf8 if column == "text" else pa.array([10**8], pa.date32())  # the year 275,760
  pq.write_table(pa.table({"q": values}), path)
  with pytest.raises(UserError, match=re.escape(str(path))):
    list(local_rows(path))


def test_a_dataset_with_a_row_that_does_not_decode_is_refused(tmp_path):
  column = {"bytes": b"no image", "path": None}
  images = datasets.Dataset.from_dict({"q": ["a"], "image": [column]})
  features = images.features | {"image": datasets.Image()}
  images.cast(datasets.Features(features)).save_to_disk(tmp_path / "images")
  with pytest.raises(UserError, match=r"images\[train\] row 0"):
    list(local_rows(tmp_path / "images"))


def test_gzipped_parquet_has_its_remedy(tmp_path):
  path = tmp_path / "rows.parquet.gz"
  path.write_bytes(gzip.compress(b"PAR1"))
  with pytest.raises(UserError, match="gunzip"):
    list(local_rows(path))
