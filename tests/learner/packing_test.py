"""Packing: nothing is lost, nothing is doubled, and every token knows where it is read from."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srl_jax.data.batches import bucket
from srl_jax.learner import packing
from srl_jax.learner.batch import weigh
from srl_jax.learner.rows import PackedGroup, Response, line_bucket, line_count
from srl_jax.policy import cpu

SETTINGS = dict(shards=1, layout="blocks")
LINES = SETTINGS | {"layout": "lines"}


def pack(groups, *, aggregate="sequence", **settings):
  return packing.pack(weigh(groups, aggregate, max_tokens=16), **settings)


def unpack(batches):
  """[(prompt, response, advantage, shares, sampler log-probs)] read back from rows, by branch."""
  found = []
  for rows in batches:
    for i in range(len(rows.tokens_bt)):
      tokens, positions, segments, branches, sources, targets = (
        x[i]
        for x in (
          rows.tokens_bt,
          rows.positions_bt,
          rows.segments_bt,
          rows.branches_bt,
          rows.hidden_index_bs,
          rows.targets_bs,
        )
      )
      floats = [x[i] for x in (rows.advantages_bs, rows.loss_weights_bs, rows.sampler_logprobs_bs)]
      trained = floats[1] > 0
      assert not trained[trained.sum() :].any()  # they come first
      read = iter(np.flatnonzero(trained))
      for segment in range(1, segments.max() + 1):
        places = np.flatnonzero(segments == segment)
        prompt = places[branches[places] == 0]
        assert (np.diff(places) == 1).all() and (positions[prompt] == np.arange(len(prompt))).all()
        for branch in range(1, branches[places].max() + 1):
          own = places[branches[places] == branch]
          assert (positions[own] == len(prompt) + np.arange(len(own))).all()
          at = [next(read) for _ in own]
          assert (targets[at] == tokens[own]).all()
          assert (sources[at] == [prompt[-1], *own[:-1]]).all()
          advantages, shares, sampler = (x[at] for x in floats)
          assert len(set(advantages)) == len(set(shares)) == 1
          found.append((*(tuple(tokens[p]) for p in (prompt, own)), advantages[0], shares[0]))
          found[-1] += (tuple(sampler),)
      assert next(read, None) is None
      padding = segments == 0
      assert not any(x[padding].any() for x in (tokens, positions, branches))
  return found


def expected(groups, share):
  return [
    (
      tuple(group.prompt_ids),
      tuple(response.token_ids),
      np.float32(response.advantage),
      np.float32(share(len(response.token_ids))),
      tuple(np.float32(response.sampler_logprobs)),
    )
    for group in groups
    for response in group.responses
  ]


@pytest.mark.parametrize("tokens_per_device", [32, 64, 128, 1000])
@pytest.mark.parametrize("shards", [1, 4])
def test_every_response_is_there_once(groups, tokens_per_device, shards):
  """Whether a group is cut over rows (32), or several share one (128)."""
  batches = pack(groups, tokens_per_device=tokens_per_device, **SETTINGS | {"shards": shards})
  assert Counter(unpack(batches)) == Counter(expected(groups, lambda n: 1 / (20 * n)))
  np.testing.assert_allclose(sum(rows.loss_weights_bs.sum() for rows in batches), 1, rtol=1e-6)
  assert len({rows.tokens_bt.shape for rows in batches}) == 1
  b, t = batches[0].tokens_bt.shape
  assert b % shards == 0 and b * t <= max(tokens_per_device * shards, 32 * shards)


def test_groups_are_cut_and_share_rows(groups):
  """What the test above claims of its settings."""
  cut = pack(groups, tokens_per_device=32, **SETTINGS)
  assert sum(rows.segments_bt.max(axis=1).sum() for rows in cut) > len(groups)
  shared = pack(groups, tokens_per_device=64, **SETTINGS)
  assert max(rows.segments_bt.max() for rows in shared) > 1
  whole = pack(groups, tokens_per_device=1000, **SETTINGS)
  assert len(whole) == 1 and (whole[0].segments_bt.max(axis=1) >= 1).all()


@pytest.mark.parametrize(
  "aggregate, share",
  [
    ("sequence", lambda n: 1 / (20 * n)),
    ("token", lambda n: 1 / 102),
    ("constant", lambda n: 1 / (20 * 16)),
  ],
)
def test_shares_are_of_the_whole_batch(groups, aggregate, share):
  batches = pack(groups, tokens_per_device=64, **SETTINGS, aggregate=aggregate)
  assert sum(len(r.token_ids) for g in groups for r in g.responses) == 102
  assert Counter(unpack(batches)) == Counter(expected(groups, share))


def test_the_prompt_stands_once_for_its_group(groups):
  (rows,) = pack(groups, tokens_per_device=1000, **SETTINGS)
  prompts = (rows.segments_bt > 0) & (rows.branches_bt == 0)
  assert prompts.sum() == sum(len(group.prompt_ids) for group in groups)


def test_responses_without_sampler_logprobs(groups):
  """Supervised examples have none."""
  (rows,) = pack(
    [PackedGroup([1, 2], [Response([3, 4], None, 1.0)])], tokens_per_device=64, **SETTINGS
  )
  assert not rows.sampler_logprobs_bs.any() and (rows.loss_weights_bs > 0).sum() == 2


def test_too_long_is_refused_with_the_keys_to_change():
  group = PackedGroup(list(range(30)), [Response([1, 2, 3], [0.0] * 3, 1.0)])
  pack([group], tokens_per_device=33, **SETTINGS)
  with pytest.raises(ValueError, match="tokens_per_device: 32 .* prompt of 30 .* response of 3;"):
    pack([group], tokens_per_device=32, **SETTINGS)


lengths = st.integers(1, 20)


@settings(max_examples=50, deadline=None)
@given(
  st.lists(st.tuples(lengths, st.lists(lengths, min_size=1, max_size=5)), min_size=1, max_size=12),
  st.sampled_from([40, 64, 200]),
  st.sampled_from([1, 2, 8]),
)
def test_any_lengths(shapes, tokens_per_device, shards):
  numbers = iter(range(1, 10**6))
  groups = [
    PackedGroup(
      [next(numbers) for _ in range(prompt)],
      [Response([next(numbers) for _ in range(n)], [0.5] * n, 1.0) for n in responses],
    )
    for prompt, responses in shapes
  ]
  batches = pack(groups, tokens_per_device=tokens_per_device, **SETTINGS | {"shards": shards})
  count = sum(len(responses) for _, responses in shapes)
  assert Counter(unpack(batches)) == Counter(expected(groups, lambda n: 1 / (count * n)))


@pytest.mark.parametrize("tokens_per_device, shards", [(64, 1), (1024, 1), (256, 2)])
def test_lines_lay_out_every_response_with_its_prompt(groups, tokens_per_device, shards):
  batches = pack(groups, tokens_per_device=tokens_per_device, **LINES | {"shards": shards})
  assert Counter(unpack(batches)) == Counter(expected(groups, lambda n: 1 / (20 * n)))
  for rows in batches:
    assert rows.layout.token_index_bml.shape[2] % 128 == 0
    for tokens_t, segments_t, branches_t, lines_ml, copies_tg in zip(
      rows.tokens_bt,
      rows.segments_bt,
      rows.branches_bt,
      rows.layout.token_index_bml,
      rows.layout.copy_index_btg,
    ):
      found = [tuple(tokens_t[line[line >= 0]]) for line in lines_ml if (line >= 0).any()]
      wanted = []
      for segment in range(1, segments_t.max() + 1):
        inside = segments_t == segment
        for branch in range(1, branches_t[inside].max() + 1):
          wanted.append(tuple(tokens_t[inside & np.isin(branches_t, (0, branch))]))
      assert Counter(found) == Counter(wanted)
      flat = lines_ml.reshape(-1)
      for place, copies in enumerate(copies_tg):
        stands = set(np.flatnonzero(flat == place).tolist())
        assert set(copies[copies >= 0].tolist()) == stands
        assert (copies[0] >= 0) == (segments_t[place] > 0)


def test_lines_of_like_length_stand_together():
  """Short groups fill rows of short lines; the one that is left goes with the longer groups."""
  group = lambda p, r: PackedGroup([1] * p, [Response([2] * r, [0.0] * r, 1.0) for _ in range(2)])
  groups = [group(100, 30)] * 9 + [group(400, 40)]  # 160 tokens, four to a row; and 480
  batches = pack(groups, tokens_per_device=640, **LINES)
  assert [rows.layout.token_index_bml.shape[2] for rows in batches] == [256, 256, 512]
  assert [(rows.segments_bt > 0).sum() for rows in batches] == [640, 640, 640]
  assert Counter(unpack(batches)) == Counter(expected(groups, lambda n: 1 / (20 * n)))


@pytest.mark.parametrize(
  "length, line", [(1, 128), (128, 128), (129, 256), (385, 512), (513, 768), (1025, 1536)]
)
def test_line_buckets(length, line):
  assert line_bucket(length) == line


@pytest.mark.parametrize(
  "lines, compiled", [(1, 8), (8, 8), (24, 24), (25, 32), (64, 64), (65, 80), (129, 160)]
)
def test_line_counts(lines, compiled):
  assert line_count(lines) == compiled


def test_a_row_of_24_lines_has_no_empty_ones():
  group = PackedGroup([1] * 20, [Response([2] * 20, [0.0] * 20, 1.0) for _ in range(8)])
  (rows,) = pack([group] * 3, tokens_per_device=640, **LINES)
  assert (
    rows.layout.token_index_bml.shape == (1, 24, 128)
    and (rows.layout.token_index_bml >= 0).any(axis=2).all()
  )


def test_ragged_batches_have_few_shapes():
  """200 batches of 16 groups of 8, some of them longer than a row, in rows of 1,024.

  Lines have 6 lengths (128 to 1,024), and 8 compiled numbers at most: a row holds no more than 63
  responses of 16 tokens. But long lines are few, so of these 48 shapes 17 are found, 14 of them in
  the first 25 batches. The copies, g, are the samples of a prompt however groups are cut.
  """
  rng = np.random.default_rng(0)
  ragged = lambda middle, most, *size: np.clip(rng.lognormal(np.log(middle), 0.6, size), 16, most)
  shapes = set()
  for _ in range(200):
    middle = rng.choice([30, 60, 200])  # the batch's own, as responses grow in a run
    groups = [
      PackedGroup([1] * int(prompt), [Response([2] * int(n), None, 1.0) for n in lengths])
      for prompt, lengths in zip(ragged(60, 500, 16), ragged(middle, 500, 16, 8))
    ]
    batches = pack(groups, tokens_per_device=1024, **LINES)
    shapes |= {
      (*rows.layout.token_index_bml.shape[1:], rows.layout.copy_index_btg.shape[2])
      for rows in batches
    }
  assert len(shapes) <= 20 and {g for *_, g in shapes} == {8}


def test_blocks_hold_every_token_once(groups):
  (rows,) = pack(groups, tokens_per_device=1000, **SETTINGS)
  blocks = cpu.in_blocks(rows.positions_bt, rows.segments_bt, rows.branches_bt, bucket)
  b, t = rows.tokens_bt.shape
  for row in range(b):
    prompts, responses = blocks.prompt_index_bsp[row], blocks.response_index_bsgr[row]
    places = np.concatenate([prompts.ravel(), responses.ravel()])
    real = rows.segments_bt[row] > 0
    assert sorted(places[places >= 0]) == np.flatnonzero(real).tolist()
    inverse = blocks.block_index_bt[row]
    assert (places[inverse[real]] == np.flatnonzero(real)).all() and (inverse[~real] == -1).all()
    for branch, places in enumerate([prompts, *responses.transpose(1, 0, 2)]):
      for segment, of_segment in enumerate(places):
        found = of_segment[of_segment >= 0]
        assert (rows.segments_bt[row, found] == segment + 1).all()
        assert (rows.branches_bt[row, found] == branch).all()
        assert (np.diff(rows.positions_bt[row, found]) == 1).all()


def test_blocks_where_they_spare_work():
  """Eight responses of 100 to a prompt of 200: 1,000 tokens in a row, most pairs masked."""
  group = PackedGroup([1] * 200, [Response([2] * 100, [0.0] * 100, 1.0) for _ in range(8)])
  (rows,) = pack([group], tokens_per_device=2000, **SETTINGS)
  assert rows.layout.prompt_index_bsp.shape == (1, 1, 224)
  assert rows.layout.response_index_bsgr.shape == (1, 1, 8, 128)
  alone = PackedGroup([1] * 200, [Response([2] * 100, [0.0] * 100, 1.0)])
  (rows,) = pack([alone], tokens_per_device=2000, **SETTINGS)
  assert rows.layout is None


def test_groups_are_cut_to_fill_rows_of_lines():
  """Of groups of 600 in rows of 1,000 the second half-fills the first row, prompt and all."""
  lengths = [60] * 8 + [20]
  groups = [
    PackedGroup([i + 1] * 100, [Response([2] * n, [0.0] * n, float(i)) for n in lengths])
    for i in range(5)
  ]
  batches = pack(groups, tokens_per_device=1000, **LINES)
  assert len(batches) == 4  # without a cut each row holds one group
  assert Counter(unpack(batches)) == Counter(expected(groups, lambda n: 1 / (45 * n)))
  long_prompts = [PackedGroup([1] * 400, group.responses) for group in groups]
  assert len(pack(long_prompts, tokens_per_device=1000, **LINES)) == 5
