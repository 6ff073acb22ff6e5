"""The check that a config's lengths fit its model, from config.json alone."""

from srl_jax.errors import UserError
from srl_jax.policy.limits import check_positions
from srl_jax.policy.model import ModelConfig
from srl_jax.tasks import SUPERVISED


def check(config, model: ModelConfig, *, has_answers: bool) -> None:
  """Raises UserError if a run of `config` would sample beyond the model's positions, or its
  adapters would be larger than what they adapt.

  Supervised fine-tuning samples only to validate; its own examples are measured one by one
  (rollout.prompt_set).

  Args:
    config: of the run.
    model: its architecture.
    has_answers: whether held-out problems have gold answers; without, none is solved.
  """
  if config.lora.rank > model.hidden_size:
    raise UserError(
      f"lora.rank: {config.lora.rank} is more than the hidden size of {config.model}"
      f" ({model.hidden_size}); 1 to 16 is enough for reinforcement learning"
    )
  responses = {}
  if config.method != SUPERVISED or config.train.stop_at:
    responses["rollout.max_tokens"] = config.rollout.max_tokens
  if config.eval.mode != "off" and (
    config.eval.benchmark or (has_answers and config.train.eval_every)
  ):
    responses["eval.max_tokens"] = config.eval.max_tokens
  if responses:
    prompt = ("data.max_prompt_tokens", config.data.max_prompt_tokens)
    check_positions(model, config.model, prompt, responses)
