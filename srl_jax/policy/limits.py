"""The check of a command's sequence lengths against the longest sequence of its model."""

from collections.abc import Mapping

from srl_jax.errors import UserError
from srl_jax.policy.model import ModelConfig


def check_positions(
  model: ModelConfig,
  name: str,
  prompt: tuple[str, int],
  responses: Mapping[str, int],
  *,
  prompt_is_setting: bool = True,
) -> None:
  """Raises UserError, with values that fit, unless each prompt with its response fits the model.

  Beyond max_position_embeddings the rotary embedding still returns angles, but the model was never
  trained on them.

  Args:
    model: its architecture.
    name: the model's, for the message.
    prompt: name and value of the longest prompt, in tokens.
    responses: {name of a setting: longest response in tokens}.
    prompt_is_setting: the prompt's length is a setting too; else it is given by the data.
  """
  limit = model.max_position_embeddings
  longest = max(responses, key=responses.get)
  total = prompt[1] + responses[longest]
  if total <= limit:
    return
  wanted = f"{prompt[0]} ({prompt[1]}) + {longest} ({responses[longest]}) = {total} tokens"
  fault = f"model {name}: {wanted} exceed its max_position_embeddings, {limit}"
  prompt_room = prompt[1]
  if prompt_is_setting and prompt[1] > limit // 2:
    # A response that needs at most half of the positions is left as it is.
    prompt_room = limit - min(responses[longest], limit - limit // 2)
  room = limit - prompt_room
  if room <= 0:
    raise UserError(f"{fault}; leave such long prompts out, or use a model with more positions")
  # The remedy names only the settings that have to change.
  lowered = {prompt[0]: prompt_room} if prompt_room < prompt[1] else {}
  for setting, length in responses.items():
    if length > room:
      lowered[setting] = room
  values = " and ".join(f"{setting}={value}" for setting, value in lowered.items())
  raise UserError(f"{fault}; set {values} (these fit), or use a model with more positions")
