"""benchmarks/host.py and host_texts.py, at a thousandth of the size."""

import dataclasses
import math
import pathlib

import numpy as np
import pytest

from benchmarks import host, host_texts
from srl_jax.data import arithmetic_tokenizer
from srl_jax.data.tokenizer import load_tokenizer

WORDS = "0 1 2 3 + - = ;"


@pytest.fixture
def folder(tmp_path):
  arithmetic_tokenizer.save(tmp_path)
  return str(tmp_path)


def test_the_tiny_form_measures_every_phase(folder):
  cases = {name: dataclasses.replace(case, words=WORDS) for name, case in host_texts.CASES.items()}
  found = {
    name: host.measure(case, folder, groups=4, samples=4, shrink=16.0, seed=0)
    for name, case in cases.items()
  }
  for r in found.values():
    assert (
      set(r["wall"]) == set(r["cpu"]) == {*host.WHILE_SAMPLING, *host.WAITED_FOR, "pack in lines"}
    )
    assert all(seconds >= 0 for seconds in r["cpu"].values())
    assert r["groups_kept"] == 4 <= r["groups_sampled"]
    assert r["longest"] <= host_texts.LONGEST / 16
    assert 0 < r["packed_share"] <= 1 and 0 < r["lines_share"] <= 1
    assert r["memory_peak"] >= r["memory_start"] > 0
  table = host.table(found).splitlines()
  assert {line.count("|") for line in table} == {len(found) + 2}


def test_lengths_are_drawn_from_the_published_quantiles():
  rng = np.random.default_rng(0)
  for name, quantiles in host_texts.LENGTHS.items():
    drawn = host_texts.draw(rng, name, 20_000)
    for share, expected in zip(host_texts.QUANTILES[1:-1], quantiles[1:-1]):
      assert math.isclose(np.quantile(drawn, share), expected, rel_tol=0.15), (name, share)
    assert quantiles[0] - 1 <= drawn.min() and drawn.max() <= quantiles[-1]


def test_texts_have_about_the_tokens_asked_for(folder):
  tokenizer = load_tokenizer(folder)
  writer = host_texts.Writer(np.random.default_rng(0), tokenizer, WORDS)
  assert len(writer.tokens(500)) == 500
  text = writer.text(500)
  count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
  assert 450 < count < 550
  assert writer.like(text, 0.0) == text
  words = zip(text.split(" "), writer.like(text, 0.5).split(" "), strict=True)
  assert 0.3 < np.mean([a == b for a, b in words]) < 0.8


def test_the_published_lengths_are_those_of_the_real_files(shared):
  tokenizer = load_tokenizer(pathlib.Path(shared) / "tokenizer_qwen2.5")
  assert host_texts.fit(pathlib.Path(shared), tokenizer) == host_texts.LENGTHS
