"""attend: masks, the ring buffer of the cache, and decoding equal to a full forward pass."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srl_jax.policy import attention, kernels, sharding
from srl_jax.policy.attention import (
  Cached,
  Chunk,
  Lines,
  Packed,
  Padded,
  attend,
  prompt_cache,
  visible,
)
from srl_jax.policy.model import rotary_angles


def test_visible_by_hand():
  """A row: padding, a prompt of 2, responses of 2 and 1 that share it, another segment of 1."""
  positions = jnp.array([[0, 0, 1, 2, 3, 2, 0]])
  segments = jnp.array([[0, 1, 1, 1, 1, 1, 2]])
  branches = jnp.array([[0, 0, 0, 1, 1, 2, 0]])
  expected = [
    "0000000",
    "0100000",
    "0110000",
    "0111000",
    "0111100",
    "0110010",
    "0000001",
  ]
  mask = visible(Packed(positions, segments, branches))[0].astype(int)
  assert ["".join(map(str, row)) for row in mask.tolist()] == expected
  # Without branches position alone decides inside a segment.
  mask = visible(Packed(positions, segments))[0].astype(int)
  assert "".join(map(str, mask[4].tolist())) == "0111110"


def lines_of_two_groups():
  """A row of 16 tokens: prompts of 3 and 2 with two responses each, and one token of padding.

  Each prompt and response is a line of 128, as splash requires; a fifth line is empty.
  """
  prompts = [[0, 1, 2], [8, 9]]
  responses = [[[3, 4], [5, 6, 7]], [[10], [11, 12, 13, 14]]]
  positions, segments, branches = np.zeros((3, 1, 16), np.int32)
  lines, copies = np.full((1, 5, 128), -1, np.int32), np.full((1, 16, 2), -1, np.int32)
  line = 0
  for segment, (prompt, of_prompt) in enumerate(zip(prompts, responses)):
    for branch, response in enumerate(of_prompt):
      both = prompt + response
      at = line * 128 + np.arange(len(both))
      positions[0, both], segments[0, both] = np.arange(len(both)), segment + 1
      branches[0, response] = branch + 1
      lines[0, line, : len(both)] = both
      copies[0, prompt, branch], copies[0, response, 0] = np.split(at, [len(prompt)])
      line += 1
  return Packed(positions, segments, branches, Lines(lines, copies))


@pytest.mark.parametrize("kernel", ["xla", "splash"])
def test_attend_lines_leak_nothing(monkeypatch, kernel):
  """Tokens that are masked change no bit of an output, nor of a gradient."""
  interpret = jax.default_backend() != "tpu"
  monkeypatch.setattr(kernels, "_splash", functools.partial(kernels._splash, interpret=interpret))
  state = lines_of_two_groups()
  rng = np.random.default_rng(0)
  draw = lambda: [rng.normal(size=(1, 16, n, 64)).astype(np.float32) for n in (2, 1, 1, 2)]
  clean, other = draw(), draw()

  @jax.jit
  def run(q, k, v, slope):
    out, back = jax.vjp(lambda *qkv: attend(*qkv, state, kernel)[0], q, k, v)
    return out, *back(slope)

  def changed(where):
    arrays = (np.where(where[:, :, None, None], y, x) for x, y in zip(clean, other))
    return [np.asarray(x) for x in run(*arrays)]

  padding = state.segments_bt == 0
  wanted = changed(padding & False)
  plain = np.asarray(kernels.masked(*clean[:3], visible(state)))
  np.testing.assert_allclose(wanted[0][~padding], plain[~padding], atol=2e-5)
  for where in (padding, state.segments_bt == 1, state.segments_bt == 2):
    for found, before in zip(changed(where), wanted):
      assert (found[~where] == before[~where]).all() and not found[padding].any()
      assert (found[where] != before[where]).any() or where is padding
  # A response changes neither its prompt's output nor anything of the other response.
  where, sibling = (state.segments_bt == 1) & (state.branches_bt == 1), state.branches_bt == 2
  found = changed(where)
  assert (found[0][~where] == wanted[0][~where]).all()
  assert all((x[sibling] == y[sibling]).all() for x, y in zip(found, wanted))


@pytest.mark.parametrize("dtype, atol", [("float32", 3e-5), ("bfloat16", 2e-2)])
def test_attend_in_chunks_equals_the_whole(dtype, atol):
  """40 tokens in chunks of 8, with scores of up to some hundreds in any block; the cache too."""
  rng = np.random.default_rng(8)
  scale_bt11 = rng.choice([1, 10], (2, 40, 1, 1))
  draw = lambda heads, scale=1: jnp.asarray(rng.normal(size=(2, 40, heads, 16)) * scale, dtype)
  q, k, v = draw(4, scale_bt11), draw(2, scale_bt11), draw(2)
  whole, _ = attend(q, k, v, Padded(jnp.full(2, 40)))
  cache = prompt_cache(jnp.full_like(k, 1e3), jnp.full_like(v, 1e3))  # of an earlier prompt
  run = jax.jit(attend)
  for start in range(0, 40, 8):
    new = slice(start, start + 8)
    out, cache = run(q[:, new], k[:, new], v[:, new], Chunk(*cache, jnp.int32(start)))
    np.testing.assert_allclose(*(np.float32(x) for x in (out, whole[:, new])), atol=atol)
  for found, wanted in zip(cache, prompt_cache(k, v)):
    assert (found == wanted).all()


def softmax_attention(q_nh, k_skh, v_skh):
  """One query against a list of keys, in float64."""
  n, k = q_nh.shape[0], k_skh.shape[1]
  out = []
  for head, q in enumerate(q_nh.astype(np.float64)):
    shared = head // (n // k)
    scores = k_skh[:, shared] @ q / math.sqrt(len(q))
    probs = np.exp(scores - scores.max())
    out.append(probs / probs.sum() @ v_skh[:, shared])
  return np.array(out)


def cached_case(r=5):
  """Random queries, keys and ring buffers of r entries, written at column 1; 4 prompts x 2."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  b, g, p, n, k, h = 4, 2, 6, 4, 2, 8
  lengths = np.array([6, 1, 3, 4], np.int32)
  ages = np.array([[1, 5], [2, 3], [4, 2], [1, 1]], np.int32)
  q, new_k, new_v = draw(b, g, n, h), draw(b, g, k, h), draw(b, g, k, h)
  prompts, rings = (draw(b, k, p, h), draw(b, k, p, h)), (draw(b, g, k, h, r), draw(b, g, k, r, h))
  return q, new_k, new_v, Cached(*prompts, lengths, *rings, np.int32(1), ages)


def test_cached_reads_its_prompt_and_its_own_slots():
  q, new_k, new_v, state = cached_case()
  out, (k_bgkhr, v_bgkrh) = jax.jit(attend)(q, new_k, new_v, state)
  for b in range(4):
    for g in range(2):
      # Entries from the oldest of this response to the newest, across the end of the ring buffer.
      slots = [(1 - age) % 5 for age in range(state.ages_bg[b, g])]
      keys, values = state.k_bgkhr[b, g].copy(), state.v_bgkrh[b, g].copy()
      keys[:, :, 1], values[:, 1] = new_k[b, g], new_v[b, g]
      np.testing.assert_array_equal(k_bgkhr[b, g], keys)
      np.testing.assert_array_equal(v_bgkrh[b, g], values)
      keys, values = keys.transpose(2, 0, 1), values.transpose(1, 0, 2)  # rkh
      prompt_k = state.prompt_k_bkph[b].transpose(1, 0, 2)  # pkh
      prompt_v = state.prompt_v_bkph[b].transpose(1, 0, 2)
      length = state.lengths_b[b]
      expected = softmax_attention(
        q[b, g],
        np.concatenate([prompt_k[:length], keys[slots]]),
        np.concatenate([prompt_v[:length], values[slots]]),
      )
      np.testing.assert_allclose(out[b, g], expected, atol=1e-5)


def long_case(p, r, lengths, ages, column):
  """Random queries, keys and caches of 2 prompts x 2 responses; what must not be read is huge."""
  rng = np.random.default_rng(1)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  lengths, ages, column = jnp.array(lengths), jnp.array(ages), jnp.int32(column)
  unseen = jnp.arange(p) >= lengths[:, None]
  prompt_k, prompt_v = (
    jnp.where(unseen[:, None, :, None], 1e4, draw(2, 1, p, 16)) for _ in range(2)
  )
  old = ((column - jnp.arange(r)) % r >= ages[:, :, None])[:, :, None]
  keys = jnp.where(old[..., None, :], 1e4, draw(2, 2, 1, 16, r))
  values = jnp.where(old[..., None], 1e4, draw(2, 2, 1, r, 16))
  new = draw(2, 2, 2, 16), draw(2, 2, 1, 16), draw(2, 2, 1, 16)
  return new, Cached(prompt_k, prompt_v, lengths, keys, values, column, ages)


@pytest.mark.parametrize(
  "p, r, lengths, ages, column",
  [
    (768, 768, [700, 3], [[1, 40], [300, 2]], 310),
    (768, 768, [256, 257], [[1, 256], [257, 700]], 5),
    (64, 1024, [64, 1], [[1024, 1], [1, 1]], 600),
    (64, 1024, [10, 1], [[1020, 1], [1, 512]], 300),
    (768, 768, [1, 1], [[1, 1], [1, 1]], 767),
  ],
)
def test_cached_in_blocks_equals_one_block(monkeypatch, p, r, lengths, ages, column):
  """Prompts and ring buffers of several blocks; responses within a block and around the end."""
  new, state = long_case(p, r, lengths, ages, column)
  out, rings = jax.jit(attend)(*new, state)
  monkeypatch.setattr(attention, "BLOCK", 1024)
  whole, expected = jax.jit(lambda *args: attend(*args))(*new, state)
  np.testing.assert_allclose(out, whole, atol=1e-5)
  assert all((a == b).all() for a, b in zip(rings, expected))


def test_cached_costs_what_its_longest_response_needs():
  """Blocks that no response has entries in are not read: NaN there does not reach the output."""
  new, state = long_case(768, 1024, [250, 3], [[100, 40], [30, 2]], 310)
  poisoned = state._replace(
    prompt_v_bkph=state.prompt_v_bkph.at[:, :, 256:].set(jnp.nan),
    v_bgkrh=state.v_bgkrh.at[:, :, :, 512:].set(jnp.nan),
  )
  out = jax.jit(attend)(*new, poisoned)[0]
  np.testing.assert_array_equal(out, jax.jit(attend)(*new, state)[0])
  further = poisoned._replace(lengths_b=jnp.array([257, 3]))
  assert jnp.isnan(jax.jit(attend)(*new, further)[0]).any()


@pytest.mark.parametrize("r, block", [(5, 256), (8, 2)], ids=["one block", "blocks"])
def test_cached_is_the_same_on_a_mesh(monkeypatch, r, block):
  monkeypatch.setattr(attention, "BLOCK", block)
  q, new_k, new_v, state = cached_case(r)
  expected = jax.jit(attend)(q, new_k, new_v, state)
  mesh = sharding.make_mesh("data=2,fsdp=2,tensor=2")
  put = lambda x, letters: sharding.put(x, letters, mesh)
  state = Cached(*map(put, state, ("bkph", "bkph", "b", "bgkhr", "bgkrh", "", "bg")))
  with jax.set_mesh(mesh):
    out = jax.jit(attend)(put(q, "bgnh"), put(new_k, "bgkh"), put(new_v, "bgkh"), state)
  for ours, theirs in zip(jax.tree.leaves(out), jax.tree.leaves(expected)):
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
  assert out[0].sharding.spec == sharding.act_spec("bgnh")


@pytest.mark.parametrize("case", ["gqa2-untied", "gqa7-untied", "qwen3", "llama3-rope-tied"])
def test_greedy_decoding_equals_the_full_forward_pass(hf_case, case):
  """Two prompts, two responses each with different first tokens; the ring buffer is just full."""
  config, model = hf_case(case).config, hf_case(case).model
  prompts = [[5, 6, 7, 8, 9], [11, 12]]
  tokens, steps = np.zeros((2, 5), np.int32), 6
  for row, ids in enumerate(prompts):
    tokens[row, : len(ids)] = ids
  lengths = jnp.array([len(ids) for ids in prompts])
  positions = jnp.tile(jnp.arange(5), (2, 1))

  def through_layers(x_btd, positions_bt, state_of_layer, state):
    rotary = rotary_angles(positions_bt, config)
    body = lambda x_btd, inner: inner[0](x_btd, rotary, state_of_layer(inner[1]))
    return jax.lax.scan(body, x_btd, (model.layers, state))

  @jax.jit
  def read(tokens_bt):
    packed = Packed(positions, (positions < lengths[:, None]).astype(jnp.int32))
    return through_layers(model.embed(tokens_bt), positions, lambda _: packed, None)[1]

  @jax.jit
  def write(tokens_bg, prompt_kv, rings, column):
    ages = jnp.full((2, 2), column + 1)
    state = lambda kv: Cached(*kv[0], lengths, *kv[1], column, ages)
    at = lengths[:, None] + column + jnp.zeros((2, 2), jnp.int32)
    x_bgd, rings = through_layers(model.embed(tokens_bg), at, state, (prompt_kv, rings))
    return model.logits(model.final_norm(x_bgd)), rings

  prompt_kv = jax.vmap(prompt_cache)(*read(tokens))
  layers, k, h = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
  rings = tuple(jnp.zeros((layers, 2, 2, k, *own)) for own in ((h, steps), (steps, h)))
  newest, written, seen = jnp.array([[20, 30], [40, 50]]), [], []
  for column in range(steps):
    written.append(newest)
    logits_bgv, rings = write(newest, prompt_kv, rings, jnp.int32(column))
    seen.append(logits_bgv)
    newest = logits_bgv.argmax(-1)
  written, seen = np.stack(written, 2), np.stack(seen, 2)

  full = np.zeros((4, 5 + steps), np.int32)
  for row in range(4):
    ids = [*prompts[row // 2], *written[row // 2, row % 2]]
    full[row, : len(ids)] = ids
  along = jnp.tile(jnp.arange(5 + steps), (4, 1))
  expected = jax.jit(lambda *rows: model.logits(model.hidden(*rows)))(
    full, along, jnp.ones_like(along)
  )
  for row in range(4):
    first = len(prompts[row // 2])
    np.testing.assert_allclose(
      seen[row // 2, row % 2], expected[row, first : first + steps], rtol=0, atol=1e-5
    )
