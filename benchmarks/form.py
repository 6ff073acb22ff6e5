"""Measures the share of well-formed responses of a model, why others fail, and their rewards.

  python -m benchmarks.form --config=configs/one_card.py:model=FOLDER,data=FILE \\
      --config.prompt.example=True --prompts=32

Samples one response to each of the first held-out prompts with the config's settings and prints a
row of docs/rollouts.md's table. Nothing is trained.
"""

import collections
import sys
import time

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from srl_jax import config as configs
from srl_jax.learner import setup, start
from srl_jax.learner.rollouts import sampling_params, score
from srl_jax.policy.sharding import make_mesh
from srl_jax.rollout.prompt_set import PromptSet
from srl_jax.rollout.sampler import Sampler
from srl_jax.tasks.examples import load_examples

CONFIG = config_flags.DEFINE_config_file("config")
PROMPTS = flags.DEFINE_integer("prompts", 32, "Held-out prompts, one response each.", 1)
SHOW = flags.DEFINE_integer("show", 0, "Responses to print.")


def main(argv: list[str]) -> None:
  del argv
  config = CONFIG.value
  configs.check(config)
  with jax.set_mesh(make_mesh(configs.mesh_spec(config))):
    examples = load_examples(config)
    policy = setup.policy_files(config, examples)
    held_out = PromptSet(config, policy.tokenizer, examples.validation)
    # Every n-th prompt, so that all problems and step numbers take part.
    every = max(1, len(held_out.examples) // PROMPTS.value)
    chosen = list(range(0, len(held_out.examples), every))[: PROMPTS.value]
    # One slot for each prompt, so that all decode together.
    engine = Sampler(policy.tokenizer, policy.stop_ids, len(chosen))
    engine.load_weights(start.start_weights(config, policy.folder), 0)
    # Groups are yielded in the order in which they finish.
    index_of = {held_out.prompt(i).id: i for i in chosen}
    prompts, scores, tokens, begin = [held_out.prompt(i) for i in chosen], [], 0, time.monotonic()
    for (rollout,) in engine.sample(prompts, 1, sampling_params(config)):
      (found,) = score(config, held_out, index_of[rollout.prompt_id], [rollout])
      scores.append(found)
      tokens += len(rollout.token_ids)
      if len(scores) <= SHOW.value:
        print(f"--- {rollout.prompt_id} {found.failure} {found.reward:.3f}\n{rollout.text}\n")
    engine.close()
  print(row(scores, tokens, time.monotonic() - begin))


def row(scores: list, tokens: int, seconds: float) -> str:
  """A row of the table: responses, failures, reasons, similarity of the well-formed, tokens."""
  reasons = collections.Counter(found.failure for found in scores if found.failure)
  well_formed = [found.reward for found in scores if not found.failure]
  mean = f"{np.mean(well_formed):.3f}" if well_formed else "-"
  failed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
  share = sum(reasons.values()) / len(scores)
  return (
    f"| {len(scores)} | {share:.0%} | {failed or '-'} | {mean} | {tokens / len(scores):.0f} |"
    f" {seconds:.0f} s"
  )


if __name__ == "__main__":
  app.run(main, sys.argv)
