"""GRPO by hand: advantages, the clip on both sides, aggregation, importance weights, KL."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srl_jax.config import defaults
from srl_jax.learner import grpo

ONE_FAILURE = [0.31, 0.35, 0.28, 0.40, -1, 0.33, 0.30, 0.36]  # a format failure among eight


@pytest.mark.parametrize(
  "ddof, eps, fifth, places",
  [(0, 1e-6, -2.637, 3), (1, 1e-6, -2.467, 3), (1, 1e-4, -2.4665, 4)],
  ids=["population", "verl and tunix", "TRL"],
)
def test_group_advantages_of_a_format_failure(ddof, eps, fifth, places):
  advantages_g = grpo.group_advantages([ONE_FAILURE], ddof=ddof, eps=eps)[0]
  assert round(float(advantages_g[4]), places) == fifth
  assert abs(advantages_g.sum()) < 1e-5
  assert (advantages_g[[0, 1, 2, 3, 5, 6, 7]] > 0).all()


def test_group_advantages_by_hand():
  # mean 0.5; population std 0.5, sample std 0.5 * sqrt(4 / 3)
  rewards_bg = [[0, 1, 1, 0], [0.25, 0.25, 0.25, 0.25]]
  np.testing.assert_allclose(
    grpo.group_advantages(rewards_bg, eps=0.5), [[-0.5, 0.5, 0.5, -0.5], [0, 0, 0, 0]]
  )
  by_sample = 0.5 / (0.5 * math.sqrt(4 / 3) + 1e-6)
  np.testing.assert_allclose(
    grpo.group_advantages(rewards_bg, ddof=1)[0], by_sample * np.array([-1, 1, 1, -1]), rtol=1e-6
  )
  centred = grpo.group_advantages([[3, 1]], scale="none")
  assert centred.tolist() == [[1, -1]] and centred.dtype == np.float32


def test_group_advantages_of_equal_rewards_are_zero():
  """The rounded mean of eight times 0.1 is not 0.1; epsilon must suppress the difference."""
  assert np.abs(grpo.group_advantages([[0.1] * 8], ddof=1)).max() < 1e-9


def test_group_advantages_refuses_unknown_settings():
  with pytest.raises(ValueError, match="advantage_ddof: 1"):
    grpo.group_advantages([[0.5], [0.1]], ddof=1)
  with pytest.raises(ValueError, match="advantage_scale: 'mad'"):
    grpo.group_advantages([[0.5, 0.1]], scale="mad")


def token_loss(logprob, old, advantage, weight=None, **algorithm):
  """grpo.token_loss of one token with loss weight 1."""
  group = defaults().algorithm.unlock()
  group.update(algorithm)
  as_array = lambda x: None if x is None else jnp.float32(x)
  arrays = map(as_array, (logprob, old, advantage, 1.0, weight))
  return grpo.token_loss(*arrays, algorithm=group)


# Bounds 1 - 0.2 and 1 + 0.3, apart on purpose. A gradient is ratio * A where the ratio is free.
@pytest.mark.parametrize(
  "ratio, advantage, objective, clipped",
  [
    (0.5, 2.0, 1.0, False),  # A > 0, below the range: the minimum is the free term
    (1.0, 2.0, 2.0, False),
    (1.5, 2.0, 2.6, True),  # A > 0, above: clipped, no gradient
    (0.5, -2.0, -1.6, True),  # A < 0, below: clipped, no gradient
    (1.0, -2.0, -2.0, False),
    (1.5, -2.0, -3.0, False),  # A < 0, above: the whole penalty
    (1.5, 0.0, 0.0, False),
  ],
)
def test_token_loss_clips_by_hand(ratio, advantage, objective, clipped):
  def run(logprob):
    loss, terms = token_loss(logprob, -1.0, advantage, clip_low=0.2, clip_high=0.3)
    return -loss, (terms["ratio"], terms["clip_fraction"])

  logprob = jnp.float32(-1.0 + math.log(ratio))
  (value, (seen, was_clipped)), slope = jax.value_and_grad(run, has_aux=True)(logprob)
  np.testing.assert_allclose([value, seen], [objective, ratio], rtol=1e-6)
  assert bool(was_clipped) == clipped
  np.testing.assert_allclose(slope, 0.0 if clipped else ratio * advantage, rtol=1e-6)


def test_importance_weights_are_capped_and_have_no_gradient():
  old, sampler = jnp.log(jnp.array([0.5, 0.2, 0.9])), jnp.log(jnp.array([0.25, 0.4, 0.1]))
  np.testing.assert_allclose(grpo.importance_weights(old, sampler, 2.5), [2, 0.5, 2.5], rtol=1e-6)
  for i, (advantage, weight) in enumerate([(1.0, 0.0), (-1.0, 1.0), (1.0, 2.0)]):
    assert token_loss(old[i], old[i], advantage, weight)[0] == -advantage * weight


def test_kl_estimate_is_k3():
  logprobs, reference = jnp.log(jnp.array([0.5, 0.25, 0.3])), jnp.log(jnp.array([0.25, 0.5, 0.3]))
  # p / q - log(p / q) - 1 of reference over policy: 1/2, 2 and 1
  by_hand = [0.5 + math.log(2) - 1, 2 - math.log(2) - 1, 0]
  np.testing.assert_allclose(grpo.kl_estimate(logprobs, reference), by_hand, rtol=1e-6, atol=1e-7)


def test_kl_estimate_is_unbiased():
  rng = np.random.default_rng(0)
  policy, reference = rng.dirichlet(np.ones(6), 2)
  estimate = grpo.kl_estimate(jnp.log(policy), jnp.log(reference))
  exact = (policy * np.log(policy / reference)).sum()
  np.testing.assert_allclose((policy * np.asarray(estimate)).sum(), exact, rtol=1e-5)


def test_token_shares_by_hand():
  lengths_b = np.array([1, 4, 3])
  sequence = grpo.token_weights(lengths_b, "sequence", 10)
  np.testing.assert_allclose(sequence, [1 / 3, 1 / 12, 1 / 9])
  np.testing.assert_allclose(grpo.token_weights(lengths_b, "token", 10), [1 / 8] * 3)
  np.testing.assert_allclose(grpo.token_weights(lengths_b, "constant", 10), [1 / 30] * 3)
  with pytest.raises(ValueError, match="aggregate: 'mean'"):
    grpo.token_weights(lengths_b, "mean", 10)


# ---- parity with the losses of other projects, written a second time with plain loops

WIDTH = 7
LENGTHS = [7, 3, 1, 5]
REWARDS = [0.31, 0.9, -1.0, 0.4]


def _numbers():
  """(logprobs_bt, old_logprobs_bt, weights_bt, mask_bt); padding is full of nonsense."""
  rng = np.random.default_rng(1)
  old_bt = rng.uniform(-3, -0.1, (4, WIDTH)).astype(np.float32)
  new_bt = old_bt + rng.uniform(-0.5, 0.5, old_bt.shape).astype(np.float32)
  weights_bt = rng.uniform(0.5, 2, old_bt.shape).astype(np.float32)
  mask_bt = np.zeros((4, WIDTH), np.int32)
  for b, length in enumerate(LENGTHS):
    start = (WIDTH - length) // 2  # responses need not begin a row
    mask_bt[b, start : start + length] = 1
  for array in (new_bt, old_bt, weights_bt):
    array[mask_bt == 0] = np.nan
  return new_bt, old_bt, weights_bt, mask_bt


def _advantage(rewards, b, ddof, eps):
  mean = sum(rewards) / len(rewards)
  variance = sum((r - mean) ** 2 for r in rewards) / (len(rewards) - ddof)
  return (rewards[b] - mean) / (math.sqrt(variance) + eps)


def _peer_loss(ddof, eps, aggregate, dual_clip=None, weights_bt=None):
  new_bt, old_bt, _, mask_bt = _numbers()
  sequences = []
  for b in range(len(REWARDS)):
    advantage, terms = _advantage(REWARDS, b, ddof, eps), []
    for t in range(WIDTH):
      if mask_bt[b, t]:
        ratio = math.exp(max(-20.0, min(20.0, float(new_bt[b, t]) - float(old_bt[b, t]))))
        term = min(ratio * advantage, max(0.8, min(1.2, ratio)) * advantage)
        if dual_clip and advantage < 0:
          term = max(term, dual_clip * advantage)
        terms.append(term * (1 if weights_bt is None else float(weights_bt[b, t])))
    sequences.append(terms)
  everything = [term for terms in sequences for term in terms]
  if aggregate == "token":
    return -sum(everything) / len(everything)
  if aggregate == "constant":
    return -sum(everything) / (WIDTH * len(sequences))
  return -sum(sum(terms) / len(terms) for terms in sequences) / len(sequences)


PEERS = {
  "the paper": (dict(ddof=0, eps=1e-6), "sequence", {}),
  "verl": (dict(ddof=1, eps=1e-6), "token", dict(dual_clip=3.0)),  # these ratios are below 3
  "TRL": (dict(ddof=1, eps=1e-4), "token", {}),
  "tunix": (dict(ddof=1, eps=1e-6), "sequence", {}),
  "Dr.GRPO's sum": (dict(ddof=1, eps=1e-6), "constant", {}),
}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("weighted", [False, True])
def test_policy_loss_equals_the_peers(peer, weighted):
  how, aggregate, more = PEERS[peer]
  new_bt, old_bt, weights_bt, mask_bt = _numbers()
  weights_bt = weights_bt if weighted else None
  loss, metrics = grpo.policy_loss(
    new_bt,
    old_bt,
    grpo.group_advantages([REWARDS], **how)[0],
    mask_bt,
    clip_low=0.2,
    clip_high=0.2,
    weights_bt=weights_bt,
    aggregate=aggregate,
  )
  theirs = _peer_loss(**how, aggregate=aggregate, weights_bt=weights_bt, **more)
  np.testing.assert_allclose(loss, theirs, rtol=1e-5)
  ratios = np.exp(new_bt - old_bt)[mask_bt > 0]
  assert 0 < metrics["clip_fraction"] < 1
  np.testing.assert_allclose(metrics["ratio"], ratios.mean(), rtol=1e-6)


def test_policy_loss_has_no_gradient_outside_the_mask():
  """Nor a nan gradient inside it, though all arrays are nan outside."""
  new_bt, old_bt, weights_bt, mask_bt = _numbers()
  loss = lambda new, old: grpo.policy_loss(
    new, old, jnp.array(REWARDS), mask_bt, clip_low=0.2, clip_high=0.2, weights_bt=weights_bt
  )[0]
  slope = np.asarray(jax.grad(loss)(new_bt, old_bt))
  assert (slope[mask_bt == 0] == 0).all()
  assert (slope[mask_bt == 1] != 0).any() and np.isfinite(slope).all()


def test_policy_loss_gradient_on_policy_is_minus_a_over_the_tokens():
  """Equation (1) at ratio 1: each token pulls with A / (its sequence's length x sequences)."""
  _, old_bt, _, mask_bt = _numbers()
  advantages_b = grpo.group_advantages([REWARDS])[0]
  loss = lambda new: grpo.policy_loss(
    new, old_bt, advantages_b, mask_bt, clip_low=0.2, clip_high=0.2
  )[0]
  by_hand = -advantages_b[:, None] * mask_bt / (4 * np.array(LENGTHS)[:, None])
  np.testing.assert_allclose(jax.grad(loss)(old_bt), by_hand, rtol=1e-6)
