"""The network: equal to transformers', packed or alone, and nothing leaks between sequences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srl_jax.policy import head, weights
from srl_jax.policy import model as M
from tests.policy.conftest import CASES

RNG = np.random.default_rng(0)
LONG, LEFT, A, B, C = (RNG.integers(1, 96, n) for n in (24, 13, 9, 1, 8))
JUNK = RNG.integers(1, 96, 24)  # token ids at padding


def full_logits(model, *row_arrays, **kwargs):
  return model.logits(model.hidden(*row_arrays, **kwargs))


forward = jax.jit(full_logits)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(hf_case, their_logits, rows, case):
  """A full row, a padded row (left and right) and a packed row, against each sequence alone."""
  hf = hf_case(case)
  arrays = rows(
    [
      [(1, LONG)],
      [(0, JUNK[:5]), (1, LEFT), (0, JUNK[:6])],
      [(1, A), (2, B), (0, JUNK[:4]), (3, C), (0, JUNK[:2])],
    ],
    24,
  )
  ours = np.asarray(forward(hf.model, *arrays))
  assert ours.dtype == np.float32
  for row, start, tokens in [(0, 0, LONG), (1, 5, LEFT), (2, 0, A), (2, 9, B), (2, 14, C)]:
    theirs = their_logits(hf.theirs, tokens)
    assert theirs.std() > 0.1  # otherwise closeness would prove nothing
    np.testing.assert_allclose(ours[row, start : start + len(tokens)], theirs, rtol=0, atol=1e-5)


PROMPT, RESPONSES = RNG.integers(1, 96, 7), [RNG.integers(1, 96, n) for n in (6, 3)]


def shared_row():
  """(tokens, positions, segments, branches), each [1, 24]: padding, the prompt, its responses."""
  pieces = [(JUNK[:4], 0, 0, 0), (PROMPT, 1, 0, 0)]
  pieces += [(ids, 1, branch, 7) for branch, ids in enumerate(RESPONSES, 1)]
  pieces += [(JUNK[:4], 0, 0, 0)]
  columns = []
  for ids, segment, branch, first in pieces:
    for i, token in enumerate(ids):
      columns.append((token, (first + i) * (segment > 0), segment, branch))
  return [jnp.asarray(line, jnp.int32)[None] for line in zip(*columns)]


def test_model_of_a_shared_prompt_equals_each_response_alone(hf_case, rows):
  """With branches, loss and gradients are those of a copy of the prompt for each response."""
  model = hf_case("gqa2-untied").model
  weight = RNG.normal(size=(2, 24, 96))  # of each logit in the loss, by response and position

  def shared_loss(model, remat="none"):
    logits = full_logits(model, *shared_row(), remat=remat)[0]
    first, last = 4 + len(PROMPT), 4 + len(PROMPT) + len(RESPONSES[0])
    loss = 0.0
    for i, (start, ids) in enumerate(zip((first, last), RESPONSES)):
      # The prompt's last token and all of the response, as GRPO reads them.
      own = jnp.concatenate([logits[first - 1 : first], logits[start : start + len(ids)]])
      loss += (own * weight[i, : len(ids) + 1]).sum()
    return loss

  def separate_loss(model):
    packed = rows([[(1, np.concatenate([PROMPT, ids]))] for ids in RESPONSES], 24)
    logits = full_logits(model, *packed)
    last = len(PROMPT) - 1
    return sum(
      (logits[i, last : last + len(ids) + 1] * weight[i, : len(ids) + 1]).sum()
      for i, ids in enumerate(RESPONSES)
    )

  expected, expected_grads = jax.jit(jax.value_and_grad(separate_loss))(model)
  for remat in M.REMAT:
    loss, grads = jax.jit(jax.value_and_grad(lambda model: shared_loss(model, remat)))(model)  # noqa: B023
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads)):
      scale = float(jnp.abs(theirs).max())
      assert scale > 0
      np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize(
  "changed, untouched",
  [
    ("left padding", slice(4, 20)),
    ("right padding", slice(4, 20)),
    ("branch 1", [*range(4, 11), *range(17, 20)]),
    ("branch 2", range(4, 17)),
    ("last prompt token", range(4, 10)),
  ],
)
def test_model_ignores_tokens_that_are_not_visible(hf_case, changed, untouched):
  model = hf_case("gqa2-untied").model
  tokens, *rest = shared_row()
  place = {
    "left padding": slice(0, 4),
    "right padding": slice(20, 24),
    "branch 1": slice(11, 17),
    "branch 2": slice(17, 20),
    "last prompt token": slice(10, 11),
  }[changed]
  before = np.asarray(forward(model, tokens, *rest))[0]
  after = np.asarray(forward(model, tokens.at[:, place].add(1) % 96, *rest))[0]
  untouched = np.arange(24)[untouched] if isinstance(untouched, slice) else list(untouched)
  np.testing.assert_array_equal(after[untouched], before[untouched])
  assert not np.array_equal(after[place], before[place])


def test_model_segments_do_not_see_each_other(hf_case, rows):
  model = hf_case("gqa1-tied").model
  other = (A + 1) % 95 + 1
  both = rows(
    [[(1, A), (2, LEFT), (0, JUNK[:2])], [(1, other), (2, LEFT), (0, JUNK[2:4])], [(0, JUNK)]], 24
  )
  logits = np.asarray(forward(model, *both))
  np.testing.assert_array_equal(logits[0, 9:22], logits[1, 9:22])
  assert not np.array_equal(logits[0, :9], logits[1, :9])
  assert np.isfinite(logits).all()  # a row of nothing but padding, too


def test_model_computes_in_bfloat16(hf_case, rows):
  """Float32 weights, bfloat16 activations, float32 logits close to the exact ones."""
  hf = hf_case("gqa2-untied")
  _, low = weights.load_hf(hf.folder, compute_dtype=jnp.bfloat16)
  arrays = rows([[(1, LONG)]] * 3, 24)
  assert low.norm.dtype == jnp.float32
  assert jax.eval_shape(low.hidden, *arrays).dtype == jnp.bfloat16
  exact, close = forward(hf.model, *arrays), forward(low, *arrays)
  assert close.dtype == jnp.float32
  error = float(jnp.abs(close - exact).max() / exact.std())
  assert 1e-4 < error < 0.3


def test_rotary_angles_are_exact_at_far_positions():
  config = M.ModelConfig(1, 1, 1, 1, 1, 1, head_dim=64, rope_theta=1e6)
  cos, sin = M.rotary_angles(jnp.array([[0, 1, 30000]]), config)
  angle = np.array([0, 1, 30000])[:, None] * 1e6 ** (-np.arange(32) / 32)
  np.testing.assert_allclose(cos[0], np.cos(angle), atol=4e-3)  # 30000 * 2**-23, in float32
  np.testing.assert_allclose(sin[0], np.sin(angle), atol=4e-3)
  np.testing.assert_allclose(cos[0, :2], np.cos(angle)[:2], atol=1e-6)


def test_abstract_has_the_weights_of_released_models():
  qwen_7b = M.ModelConfig(152064, 3584, 18944, 28, 28, 4, 128)
  qwen_half = M.ModelConfig(151936, 896, 4864, 24, 14, 2, 64, tie_word_embeddings=True)
  count = lambda config: sum(leaf.size for leaf in jax.tree.leaves(M.abstract(config)))
  assert count(qwen_7b) == 7_615_616_512
  assert count(qwen_half) == 494_032_768
  qwen3 = M.ModelConfig(151936, 1024, 3072, 28, 16, 8, 128, tie_word_embeddings=True)
  assert count(dataclasses.replace(qwen3, model_type="qwen3")) == 596_049_920  # Qwen3-0.6B
  llama = M.ModelConfig(128256, 4096, 14336, 32, 32, 8, 128, model_type="llama")
  assert count(llama) == 8_030_261_248  # Llama-3.1-8B


def test_init_is_qwen2s_and_depends_on_the_seed(hf_case):
  config = dataclasses.replace(hf_case("gqa2-untied").config, vocab_size=960)
  model, other = M.init(config, 0), M.init(config, 1)
  assert float(model.embed_tokens[...].std()) == pytest.approx(0.02, rel=0.02)
  assert float(jnp.abs(model.layers.q_bias[...]).max()) == 0
  assert (model.norm[...] == 1).all() and (model.layers.input_layernorm[...] == 1).all()
  first, second = model.layers.q_proj[0], model.layers.q_proj[1]
  assert not np.array_equal(first, second)
  assert not np.array_equal(model.embed_tokens[...], other.embed_tokens[...])


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, dtype", [("smollm2-135m", "float64"), ("qwen2.5-coder-0.5b", "float32")]
)
def test_real_models_equal_transformers(real_models, their_logits, rows, name, dtype):
  """Real weights and text, padded and packed with another text: logits within 1e-4.

  SmolLM2 is held against transformers in float64: its activations are so uneven that rounding
  alone puts any float32 run, theirs as well as ours, up to 9e-5 away from that.
  """
  import torch
  import transformers

  folder = real_models(name)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  texts = ["The sum of the angles of a triangle is 180 degrees, so x =", "def add(a, b):\n  return"]
  first, second = (tokenizer(text)["input_ids"] for text in texts)
  t = len(first) + len(second) + 3
  packed = rows([[(0, [0] * 3), (1, first), (2, second)], [(1, second)]], t)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
  expected = [their_logits(theirs, ids) for ids in (first, second)]
  del theirs
  _, model = weights.load_hf(folder)
  ours = np.asarray(forward(model, *packed))
  middle = 3 + len(first)
  for part, want in [
    (ours[0, 3:middle], expected[0]),
    (ours[0, middle:], expected[1]),
    (ours[1, : len(second)], expected[1]),
  ]:
    print(name, np.abs(part - want).max())
    np.testing.assert_allclose(part, want, rtol=0, atol=1e-4)


def test_head_gradient_is_summed_in_float32():
  """600 equal parts: in bfloat16 the sum would stop at 256."""
  master = jnp.zeros((1, 1))

  def total(master):
    cast = jax.lax.stop_gradient(master.astype(jnp.bfloat16))
    part = lambda _, __: (None, head.in_type(master, cast).sum().astype(jnp.float32))
    return jax.lax.scan(part, None, None, length=600)[1].sum()

  assert jax.grad(total)(master) == 600
