"""The built-in engine: its distribution, and that width, order and mesh do not change samples."""

import contextlib
import dataclasses
import gc
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import PARAMS, PROMPTS, STOPS, N, Words, assert_same, policy, tokens

from srl_jax.learner import packing, update
from srl_jax.learner.rows import PackedGroup, Response
from srl_jax.policy.sharding import make_mesh
from srl_jax.rollout import sampler as S
from srl_jax.rollout.engine import Prompt


@contextlib.contextmanager
def warnings_of(name):
  """The messages that the logger emits in the block."""
  said, handler = [], logging.Handler()
  handler.emit = lambda record: said.append(record.getMessage())
  logging.getLogger(name).addHandler(handler)
  try:
    yield said
  finally:
    logging.getLogger(name).removeHandler(handler)


def engine(width=16, stops=STOPS, version=1):
  made = S.Sampler(Words(), stops, width)
  made.load_weights(policy(), version)
  return made


def sample(prompts=PROMPTS, n=N, params=PARAMS, **given):
  """{prompt id: group}."""
  groups = list(engine(**given).sample(prompts, n, params))
  assert sorted(g[0].prompt_id for g in groups) == sorted(p.id for p in prompts)
  assert all(len(g) == n and len({r.prompt_id for r in g}) == 1 for g in groups)
  return {group[0].prompt_id: group for group in groups}


@pytest.fixture(scope="module")
def groups():
  """All prompts through four slots: each slot is refilled and the ring buffers wrap around."""
  return sample()


@pytest.fixture(scope="module")
def distribution():
  """distribution(prompts, groups, temperature) -> [(prompt id, sample, position, logprobs_v)].

  From full forward passes without a cache, one sequence a row.
  """
  forward = jax.jit(lambda model, *row: model.logits(model.hidden(*row)))
  model = policy()

  def of(prompts, groups, temperature=1.0):
    rows = [(p, g, p.token_ids + groups[p.id][g].token_ids) for p in prompts for g in range(N)]
    ids_bt, positions_bt, segments_bt = np.zeros((3, len(rows), 48), np.int32)
    for b, (_, _, ids) in enumerate(rows):
      ids_bt[b, : len(ids)], segments_bt[b, : len(ids)] = ids, 1
      positions_bt[b, : len(ids)] = np.arange(len(ids))
    logits = np.asarray(forward(model, ids_bt, positions_bt, segments_bt))
    logprobs = np.asarray(jax.nn.log_softmax(logits / temperature))
    return [
      (p.id, g, i, logprobs[b, len(p.token_ids) - 1 + i])
      for b, (p, g, ids) in enumerate(rows)
      for i in range(len(ids) - len(p.token_ids))
    ]

  return of


# ---- (seed, step, prompt, sample, position) determine a token


def test_sample_does_not_depend_on_width(groups):
  """One slot, which every prompt waits for, against four."""
  assert_same(sample(width=4), groups)


def test_sample_does_not_depend_on_order_and_neighbours(groups):
  assert_same(sample(PROMPTS[::-1]), groups)
  alone = sample(PROMPTS[3:4])
  assert tokens(alone)["p3"] == tokens(groups)["p3"]


@pytest.mark.parametrize("spec", ["data=8", "data=2,fsdp=2,tensor=2", "fsdp=4,tensor=2"])
def test_sample_does_not_depend_on_the_mesh(groups, spec):
  with jax.set_mesh(make_mesh(spec)):
    assert_same(sample(width=32), groups)


@pytest.mark.parametrize("other", [dict(seed=4), dict(step=6)])
def test_sample_depends_on_seed_and_step(groups, other):
  found = tokens(sample(params=dataclasses.replace(PARAMS, **other)))
  same = sum(a == b for id in found for a, b in zip(found[id], tokens(groups)[id]))
  assert same <= 2  # of 48; one-token responses may agree


def test_sample_has_a_random_stream_for_each_response(groups):
  """The same tokens under another id, or as another sample of the group, give other samples."""
  twins = [Prompt(f"twin {i}", PROMPTS[4].token_ids) for i in range(4)]
  found = tokens(sample(twins))
  drawn = [tuple(ids) for id in found for ids in found[id]]
  assert len(set(drawn)) >= 15  # of 16


# ---- log-probs and the distribution


def trainer_logprobs(groups, temperature):
  """{(prompt id, sample): log-probs} by the trainer, from rows with shared prompts."""
  out, model = {}, policy()
  for prompt in PROMPTS:
    responses = [Response(r.token_ids, None, 1.0, 1.0) for r in groups[prompt.id]]
    packed = [PackedGroup(prompt.token_ids, responses)]
    shapes = packing.row_shapes(packing.lengths_of(packed), 96, model.config.layout)
    (rows,) = packing.fill(packed, shapes[:1], 1)  # the largest shape has room for the group
    loss = update.Loss(None, temperature=temperature)
    ((*logprobs,),) = np.asarray(update.logprobs_of(model, update.on_device(rows), loss=loss))
    for g, response in enumerate(responses):
      out[prompt.id, g] = [logprobs.pop(0) for _ in response.token_ids]
  return out


def test_sample_logprobs_are_the_distributions(groups, distribution):
  for id, g, i, logprobs_v in distribution(PROMPTS, groups):
    rollout = groups[id][g]
    assert rollout.sampler_logprobs[i] == pytest.approx(
      float(logprobs_v[rollout.token_ids[i]]), abs=1e-4
    )


@pytest.fixture(scope="module")
def many():
  """(prompts, groups): each prompt eight times, 384 responses in all."""
  prompts = [Prompt(f"{p.id}/{i}", p.token_ids) for p in PROMPTS for i in range(8)]
  return prompts, sample(prompts)


def test_sample_tokens_follow_the_distribution(many, distribution):
  """Over all positions the mean surprise is the mean entropy; at temperature 0.9 it is not."""
  prompts, found = many

  def z_score(temperature):
    excess = variance = 0.0
    for id, g, i, logprobs_v in distribution(prompts, found, temperature):
      probs = np.exp(logprobs_v)
      entropy = -(probs * logprobs_v).sum()
      excess += -logprobs_v[found[id][g].token_ids[i]] - entropy
      variance += (probs * logprobs_v**2).sum() - entropy**2
    return excess / variance**0.5

  assert abs(z_score(1.0)) < 3
  assert z_score(0.9) > 4


@pytest.mark.parametrize("positions", [[1], range(2, 12)], ids=["behind the prefill", "later"])
def test_sample_neighbours_have_different_random_numbers(many, distribution, positions):
  """Otherwise a token would be repeated more often than by its probability."""
  prompts, found = many
  excess = variance = 0.0
  for id, g, i, logprobs_v in distribution(prompts, found):
    if i in positions:
      ids = found[id][g].token_ids
      again = np.exp(logprobs_v[ids[i - 1]])
      excess += (ids[i] == ids[i - 1]) - again
      variance += again * (1 - again)
  assert abs(excess) / variance**0.5 < 3


def test_sample_logprobs_at_another_temperature_are_the_trainers():
  found = sample(params=dataclasses.replace(PARAMS, temperature=0.7))
  for (id, g), logprobs in trainer_logprobs(found, 0.7).items():
    np.testing.assert_allclose(found[id][g].sampler_logprobs, logprobs, atol=1e-4)


def test_sample_greedy_takes_the_most_likely(distribution):
  """Of the full forward pass, at every position; log-probs are those of temperature 1."""
  found = sample(params=dataclasses.replace(PARAMS, temperature=0.0))
  for id, g, i, logprobs_v in distribution(PROMPTS, found):
    rollout = found[id][g]
    assert rollout.token_ids[i] == int(logprobs_v.argmax())
    assert rollout.sampler_logprobs[i] == pytest.approx(float(logprobs_v.max()), abs=1e-4)


def test_sample_logprobs_agree_with_the_trainer_after_refilling(groups):
  """Slots of all ages together, ring buffers wrapped around: within 1e-4 at every token."""
  for (id, g), logprobs in trainer_logprobs(groups, 1.0).items():
    np.testing.assert_allclose(groups[id][g].sampler_logprobs, logprobs, atol=1e-4)


# ---- how a response ends


def test_sample_ends_at_the_first_stop_token_or_the_limit(groups):
  rollouts = [r for group in groups.values() for r in group]
  for rollout in rollouts:
    stops = [i for i, token in enumerate(rollout.token_ids) if token in STOPS]
    if rollout.finish_reason == "stop":
      assert stops == [len(rollout.token_ids) - 1]
    else:
      assert rollout.finish_reason == "length" and not stops and len(rollout.token_ids) == 12
    assert len(rollout.sampler_logprobs) == len(rollout.token_ids)
    said = [f"w{token}" for token in rollout.token_ids if token not in STOPS]
    assert rollout.text == " ".join(said)
  reasons = {(r.finish_reason, r.token_ids[-1] in STOPS and r.token_ids[-1]) for r in rollouts}
  assert reasons == {("stop", 7), ("stop", 23), ("length", False)}  # both stop ids were met


def test_sample_of_one_token_needs_no_decoding():
  found = sample(params=dataclasses.replace(PARAMS, max_tokens=1))
  for group in found.values():
    assert [len(rollout.token_ids) for rollout in group] == [1] * N


# ---- groups, stops and errors


def test_sample_yields_groups_as_they_end_with_the_version(groups):
  made = engine(version=41)
  stream = made.sample(PROMPTS, N, PARAMS)
  before = {g[0].prompt_id: g for g in [next(stream)]}
  made.load_weights(policy(seed=1), 42)
  before |= {g[0].prompt_id: g for g in stream}  # continues with the weights that it began with
  assert tokens(before) == tokens(groups)
  assert {r.weight_version for group in before.values() for r in group} == {41}
  after = {g[0].prompt_id: g for g in made.sample(PROMPTS, N, PARAMS)}
  assert {r.weight_version for group in after.values() for r in group} == {42}
  assert tokens(after) != tokens(groups)


class Stopping:
  """A `check` that raises KeyError at its call number `at`; `calls` counts them."""

  def __init__(self, at):
    self.at, self.calls = at, 0

  def __call__(self):
    self.calls += 1
    if self.calls == self.at:
      raise KeyError("stop")


@pytest.mark.parametrize("prompts, at", [(12, 1), (12, 2), (12, 3), (4, 2)])
def test_sample_ends_at_a_stop_and_can_be_called_again(groups, prompts, at):
  """`check` raises before the first, second, third decode call.

  With four prompts in four slots the first call is in flight when the second is refused.
  """
  check = Stopping(at)
  made = S.Sampler(Words(), STOPS, 16, check)
  made.load_weights(policy(), 1)
  came = {}
  with pytest.raises(KeyError, match="stop"):
    for group in made.sample(PROMPTS[:prompts], N, PARAMS):
      assert group[0].prompt_id not in came
      came[group[0].prompt_id] = group
  assert check.calls == at and len(came) < prompts
  assert tokens(came) == {id: tokens(groups)[id] for id in came}
  assert_same({g[0].prompt_id: g for g in made.sample(PROMPTS, N, PARAMS)}, groups)


def test_sample_yields_groups_while_others_decode(many):
  """Of 64 groups in 64 slots the first are yielded before the last decode call is dispatched."""
  check = Stopping(at=0)
  made = S.Sampler(Words(), STOPS, 64 * N, check)
  made.load_weights(policy(), 1)
  stream = made.sample(many[0][:64], N, PARAMS)
  next(stream)
  calls = check.calls
  assert len(list(stream)) == 63 and check.calls > calls


def test_sample_can_be_called_after_an_error_in_the_caller(groups):
  """The responses of the first decode call are unreadable while the second is in flight."""

  class Broken(Words):
    works = False

    def decode(self, ids, skip_special_tokens):
      if not self.works:
        raise KeyError("no such token")
      return super().decode(ids, skip_special_tokens)

  tokenizer = Broken()
  made = S.Sampler(tokenizer, STOPS, 16)
  made.load_weights(policy(), 1)
  with pytest.raises(KeyError, match="no such token"):
    list(made.sample(PROMPTS[:4], N, PARAMS))
  tokenizer.works = True
  assert_same({g[0].prompt_id: g for g in made.sample(PROMPTS, N, PARAMS)}, groups)


def test_sample_can_be_called_after_a_caller_left_early(groups):
  made = engine()
  stream = made.sample(PROMPTS, N, PARAMS)
  next(stream)
  stream.close()
  assert_same({g[0].prompt_id: g for g in made.sample(PROMPTS, N, PARAMS)}, groups)


@pytest.mark.parametrize("spec", [None, "data=2,fsdp=2,tensor=2"])
def test_load_weights_keeps_a_bfloat16_copy(spec):
  """The copy and the caches have the compute type, the policy keeps its float32 masters."""
  with jax.set_mesh(make_mesh(spec)) if spec else contextlib.nullcontext():
    masters = policy(dtype="bfloat16")
    made = S.Sampler(Words(), STOPS, 16)
    made.load_weights(masters, 1)
    copied = {leaf.dtype for leaf in jax.tree.leaves((made.model, made.layers))}
    assert copied == {np.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(masters)} == {np.dtype(np.float32)}
    groups = list(made.sample(PROMPTS[:4], N, PARAMS))
  assert len(groups) == 4 and all(np.isfinite(r.sampler_logprobs).all() for g in groups for r in g)


def test_sample_leaves_the_policy_unchanged():
  model = policy()
  before = jax.tree.map(np.asarray, model)
  made = S.Sampler(Words(), STOPS, 16)
  made.load_weights(model, 0)
  list(made.sample(PROMPTS[:2], N, PARAMS))
  for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(model)):
    assert (a == np.asarray(b)).all()


def test_sample_leaves_nothing_on_the_device():
  """Not even until the next garbage collection: caches are gigabytes, and an update follows."""
  made = engine()
  list(made.sample(PROMPTS, N, PARAMS))
  gc.disable()
  try:
    before = len(jax.live_arrays())
    list(made.sample(PROMPTS, N, PARAMS))
    assert len(jax.live_arrays()) == before
  finally:
    gc.enable()


def test_sample_compiles_nothing_for_lengths_seen_before():
  """Full and short batches, other seeds and steps, lengths of two buckets."""
  made, rng = engine(), np.random.default_rng(2)

  def run(step):
    lengths = rng.integers(1, 33 if step % 2 else 60, rng.integers(1, 9))
    batch = [Prompt(f"{step}/{i}", tuple([5] * int(n))) for i, n in enumerate([*lengths, 30])]
    batch[0] = Prompt(f"{step}/0", tuple([5] * (32 if step % 2 else 60)))
    list(made.sample(batch, N, dataclasses.replace(PARAMS, step=step, seed=step)))

  run(0), run(1)
  with jax.log_compiles(), warnings_of("jax") as compiled:
    for step in range(2, 8):
      run(step)
    known = len([line for line in compiled if line.startswith("Compiling")])
    list(made.sample(PROMPTS[:1], N + 1, PARAMS))
  assert known == 0 and any(line.startswith("Compiling") for line in compiled)


def test_sample_with_a_width_below_the_group():
  assert tokens(sample(PROMPTS[:3], width=3)) == tokens(sample(PROMPTS[:3], width=4))


def test_sample_of_no_prompts_and_without_weights():
  assert list(engine().sample([], N, PARAMS)) == []
  with pytest.raises(RuntimeError, match="call load_weights first"):
    next(S.Sampler(Words(), STOPS, 16).sample(PROMPTS, N, PARAMS))
  closed = engine()
  closed.close()
  with pytest.raises(RuntimeError, match="call load_weights first"):
    next(closed.sample(PROMPTS, N, PARAMS))


@pytest.mark.parametrize("mesh", [None, "data=1", "data=2"])
def test_sample_one_response_of_one_prompt(mesh):
  """Sizes of one: a slot, a response, a token; on each shard of the mesh."""
  with jax.set_mesh(make_mesh(mesh)) if mesh else contextlib.nullcontext():
    made = S.Sampler(Words(), STOPS, 1)
    made.load_weights(policy(), 0)
    for count in (1, 3):
      params = dataclasses.replace(PARAMS, max_tokens=count)
      groups = list(made.sample(PROMPTS[:count], 1, params))
      assert sorted(group[0].prompt_id for group in groups) == [f"p{i}" for i in range(count)]
      assert all(1 <= len(group[0].token_ids) <= count for group in groups)
    made.close()
