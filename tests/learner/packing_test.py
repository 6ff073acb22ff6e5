"""Packing: every token is packed exactly once, with the index of the state that predicts it."""

from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srl_jax.learner import packing
from srl_jax.learner.batch import weigh
from srl_jax.learner.rows import PackedGroup, Response
from srl_jax.policy import cpu

SETTINGS = dict(shards=1, layout="blocks")
LINES = SETTINGS | {"layout": "lines"}


def pack(groups, *, aggregate="sequence", **settings):
  return packing.pack(weigh(groups, aggregate, max_tokens=16), **settings)


def one_micro_batch(groups, tokens, layout="blocks"):
  """The groups in a micro-batch of a single row."""
  shapes = packing.row_shapes(packing.lengths_of(groups), tokens, layout)
  (rows,) = packing.fill(weigh(groups, "sequence", 16), shapes[:1], 1)
  return rows


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
      assert not trained[trained.sum() :].any()  # at the start of the axis s
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
def test_pack_has_every_response_once(groups, tokens_per_device, shards):
  """Also when a group is cut into several rows (32), or several groups share one (128)."""
  batches = pack(groups, tokens_per_device=tokens_per_device, **SETTINGS | {"shards": shards})
  assert Counter(unpack(batches)) == Counter(expected(groups, lambda n: 1 / (20 * n)))
  np.testing.assert_allclose(sum(rows.loss_weights_bs.sum() for rows in batches), 1, rtol=1e-6)
  assert len({rows.tokens_bt.shape for rows in batches}) <= 3
  for rows in batches:
    b, t = rows.tokens_bt.shape
    assert b % shards == 0 and b * t <= tokens_per_device * shards


def test_pack_cuts_groups_and_shares_rows(groups):
  """The settings of the test above do cover both cases."""
  cut = pack(groups, tokens_per_device=32, **SETTINGS)
  assert sum(rows.segments_bt.max(axis=1).sum() for rows in cut) > len(groups)
  shared = pack(groups, tokens_per_device=64, **SETTINGS)
  assert max(rows.segments_bt.max() for rows in shared) > 1
  assert one_micro_batch(groups, 1000).segments_bt.max() == len(groups)


@pytest.mark.parametrize(
  "aggregate, share",
  [
    ("sequence", lambda n: 1 / (20 * n)),
    ("token", lambda n: 1 / 102),
    ("constant", lambda n: 1 / (20 * 16)),
  ],
)
def test_pack_keeps_the_shares_of_the_whole_batch(groups, aggregate, share):
  batches = pack(groups, tokens_per_device=64, **SETTINGS, aggregate=aggregate)
  assert sum(len(r.token_ids) for g in groups for r in g.responses) == 102
  assert Counter(unpack(batches)) == Counter(expected(groups, share))


def test_pack_has_a_prompt_once_for_its_group(groups):
  rows = one_micro_batch(groups, 1000)
  prompts = (rows.segments_bt > 0) & (rows.branches_bt == 0)
  assert prompts.sum() == sum(len(group.prompt_ids) for group in groups)


def test_pack_accepts_responses_without_logprobs(groups):
  """Supervised examples have none."""
  (rows,) = pack(
    [PackedGroup([1, 2], [Response([3, 4], None, 1.0)])], tokens_per_device=64, **SETTINGS
  )
  assert not rows.sampler_logprobs_bs.any() and (rows.loss_weights_bs > 0).sum() == 2


def test_pack_refuses_what_is_too_long_and_names_the_keys():
  group = PackedGroup(list(range(30)), [Response([1, 2, 3], [0.0] * 3, 1.0)])
  pack([group], tokens_per_device=33, **SETTINGS)
  with pytest.raises(ValueError, match="tokens_per_device: 32 .* 30 .* 3"):
    pack([group], tokens_per_device=32, **SETTINGS)


lengths = st.integers(1, 20)


@settings(max_examples=50, deadline=None)
@given(
  st.lists(st.tuples(lengths, st.lists(lengths, min_size=1, max_size=5)), min_size=1, max_size=12),
  st.sampled_from([40, 64, 200]),
  st.sampled_from([1, 2, 8]),
)
def test_pack_of_any_lengths_loses_nothing(shapes, tokens_per_device, shards):
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
def test_lines_have_every_response_after_its_prompt(groups, tokens_per_device, shards):
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
        wanted = set(np.flatnonzero(flat == place).tolist())
        assert set(copies[copies >= 0].tolist()) == wanted
        assert (copies[0] >= 0) == (segments_t[place] > 0)


# Tokens of (prompt, target): 48 examples each, drawn from those that prompt_set.PromptSet measures
# of mathodyssey_deepseek_v3.jsonl (configs/srl_math.py) and swesmith_trajectories_xml.jsonl
# (configs/srl_swe.py) with Qwen2.5's tokenizer.
# fmt: off
MATH = [
  (252, 75), (254, 88), (262, 97), (290, 64), (330, 150), (335, 70), (362, 178), (372, 106),
  (388, 43), (397, 99), (403, 83), (405, 182), (409, 105), (410, 205), (411, 107), (423, 50),
  (445, 109), (447, 57), (478, 401), (481, 231), (495, 91), (499, 163), (513, 99), (533, 68),
  (540, 134), (549, 119), (564, 339), (582, 73), (591, 147), (594, 262), (601, 34), (657, 192),
  (658, 142), (659, 268), (664, 108), (666, 116), (688, 74), (696, 234), (706, 165), (732, 122),
  (773, 406), (867, 159), (884, 71), (975, 108), (1017, 84), (1157, 46), (1257, 167), (1625, 240),
]
SWE = [
  (833, 39), (1049, 39), (1063, 33), (1113, 37), (1190, 27), (1220, 29), (1224, 30), (1295, 220),
  (1319, 43), (1330, 25), (1352, 29), (1355, 147), (1441, 35), (1525, 49), (1550, 23), (1639, 62),
  (1663, 51), (1664, 45), (1714, 25), (1769, 26), (1777, 26), (1780, 244), (1912, 23), (1924, 35),
  (1961, 282), (2053, 73), (2061, 102), (2124, 208), (2294, 326), (2323, 39), (2394, 26),
  (2472, 828), (2503, 24), (2742, 40), (2958, 8), (2994, 25), (3137, 862), (3204, 25),
  (3228, 1222), (3285, 34), (3418, 25), (3477, 25), (3533, 33), (3596, 997), (3781, 428),
  (3790, 51), (4958, 692), (5029, 24),
]
# fmt: on
REAL = {"math": (MATH, 2048), "swe": (SWE, 3072)}


def real_groups(rng, name, count):
  """Groups of 8 responses, each about as long as the target and a monologue of 60 tokens."""
  lengths, most = REAL[name]
  groups = []
  for i in rng.integers(0, len(lengths), count):
    prompt, target = lengths[i]
    drawn = target * rng.lognormal(0, 0.4, 8) + rng.lognormal(np.log(60), 0.5, 8)
    responses = [Response([2] * int(n), None, 1.0, 1.0) for n in drawn.clip(1, most)]
    groups.append(PackedGroup([1] * prompt, responses))
  return groups


def real_shapes(name, layout):
  lengths, most = REAL[name]
  prompts, targets = zip(*lengths)
  expected = np.mean(prompts) / 8 + np.mean(targets)
  typical = int(np.quantile(prompts, 0.9) + 4 * np.mean(targets))
  found = packing.Lengths(max(prompts), most, max(prompts) + most, 8, float(expected), typical)
  return packing.row_shapes(found, 16384, layout)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(
  "layout, count, shards, steps",
  [
    ("lines", 64, 1, 20),
    pytest.param("lines", 64, 8, 60, marks=pytest.mark.integration),
    pytest.param("lines", 512, 8, 1, marks=pytest.mark.integration),
    ("blocks", 64, 1, 20),
  ],
)
def test_fill_has_three_shapes_and_full_rows(name, layout, count, shards, steps):
  """A batch never needs another shape, and on average 0.92 of the tokens are real ones."""
  rng, shapes, shares = np.random.default_rng(0), set(), []
  for _ in range(steps):
    batches = packing.fill(real_groups(rng, name, count), real_shapes(name, layout), shards)
    for rows in batches:
      shapes.add(tuple(x.shape for x in jax.tree.leaves(rows)))
    real = sum((rows.segments_bt > 0).sum() for rows in batches)
    shares.append(real / sum(rows.segments_bt.size for rows in batches))
  assert len(shapes) <= 3
  assert np.mean(shares) >= 0.92


def test_fill_of_longer_responses_has_the_same_shapes():
  """All responses of the greatest length: rows are as full as they can be, and nothing is lost."""
  group = PackedGroup([1] * 1480, [Response([2] * 2048, [0.0] * 2048, 1.0) for _ in range(8)])
  shapes = real_shapes("math", "lines")
  batches = packing.fill(weigh([group] * 3, "sequence", 16), shapes, 2)
  assert sum((rows.loss_weights_bs > 0).sum() for rows in batches) == 3 * 8 * 2048
  known = {(shape.tokens, shape.places, shape.line) for shape in shapes}
  assert {(r.tokens_bt.shape[1], *r.layout.token_index_bml.shape[1:]) for r in batches} <= known


def test_row_shapes_bound_the_memory_of_lines():
  """Even if the expected lengths are short compared with the longest."""
  found = packing.Lengths(
    prompt=8000, response=100, line=8100, samples=8, expected=9.0, typical=300
  )
  for shape in packing.row_shapes(found, 16384, "lines"):
    assert shape.places * shape.line <= packing.LINE_TOKENS * 16384


def test_fill_of_one_token_responses_fits_the_places():
  """Rows are closed when their lines are used, however short the responses are."""
  group = PackedGroup([1] * 153, [Response([2], [0.0], 1.0) for _ in range(8)])
  batches = packing.fill(weigh([group] * 200, "sequence", 16), real_shapes("math", "lines"), 1)
  assert sum((rows.loss_weights_bs > 0).sum() for rows in batches) == 200 * 8


def test_blocks_hold_every_token_once(groups):
  rows = one_micro_batch(groups, 1000)
  arrays = rows.positions_bt, rows.segments_bt, rows.branches_bt
  blocks = cpu.in_blocks(*arrays, s=len(groups) + 1, p=32, g=5, r=32)
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


def test_row_shapes_use_blocks_where_they_save_work():
  """Eight responses of 100 to a prompt of 200: 1,000 tokens in a row, most pairs masked."""
  group = PackedGroup([1] * 200, [Response([2] * 100, [0.0] * 100, 1.0) for _ in range(8)])
  rows = one_micro_batch([group], 1000)
  assert rows.layout.prompt_index_bsp.shape == (1, 1, 224)
  assert rows.layout.response_index_bsgr.shape == (1, 1, 8, 128)
  alone = PackedGroup([1] * 200, [Response([2] * 100, [0.0] * 100, 1.0)])
  rows = one_micro_batch([alone], 300)
  assert rows.layout is None


def test_fill_cuts_groups_to_fill_rows_of_lines():
  """Of groups of 600 tokens in rows of 1,000, half of the second one fills the first row."""
  lengths = [60] * 8 + [20]
  groups = [
    PackedGroup([i + 1] * 100, [Response([2] * n, [0.0] * n, float(i)) for n in lengths])
    for i in range(5)
  ]
  batches = pack(groups, tokens_per_device=1000, **LINES)
  assert sum(rows.tokens_bt.size for rows in batches) <= 4000  # without a cut each row holds one
  assert Counter(unpack(batches)) == Counter(expected(groups, lambda n: 1 / (45 * n)))
