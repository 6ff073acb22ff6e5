"""The prompts of a run's examples."""

import functools

from srl_jax import hosts
from srl_jax.data.examples import StepExample
from srl_jax.data.responses import after_opened_tag
from srl_jax.data.runs import shorten_observation
from srl_jax.data.tokenizer import EncodedPrompt, encode
from srl_jax.errors import UserError
from srl_jax.rollout.engine import Prompt
from srl_jax.tasks import SUPERVISED, TASKS, PromptSettings, opens_think, system_prompt

SAMPLE = 256  # examples with a measured target in RL, where targets only estimate lengths


class PromptSet:
  """Examples with prompts that are short enough; the prompts are tokenised when they are needed.

  Only the token ids of the most recent prompts are cached: 134,000 prompts of 4,000 tokens would
  not fit into memory.

  Attributes:
    examples: those with prompts that fit, in their order.
    too_long: how many were left out because of data.max_prompt_tokens, or, for supervised
      fine-tuning, because prompt and response together exceed batch.tokens_per_device or the
      model's positions.
    think_opened: whether the prompts end with an opened think block.
    prompt_tokens: tokens of each example's prompt.
    target_tokens: tokens of its target: of every one where they are trained on, else of the first
      SAMPLE examples.
  """

  def __init__(self, config, tokenizer, examples: list[StepExample], positions: int = 2**31):
    """Measures all prompts, each process of the run its part of them.

    Args:
      config: a run's config.
      tokenizer: from data.tokenizer.load_tokenizer.
      examples: the same list on every process; all must call together.
      positions: the model's max_position_embeddings, the longest supervised sequence.

    Raises UserError when there are examples and none is short enough.
    """
    self._config, self._tokenizer = config, tokenizer
    self._wording = PromptSettings.from_group(config.prompt)
    self._room = min(config.batch.tokens_per_device, positions)
    self._system = functools.cache(self._system_prompt)
    # An observation is in the prompts of all later steps of its run, which are neighbours in the
    # list, so a small cache saves tokenising it again.
    self._shorten = functools.lru_cache(256)(self._shorten_observation)
    self._cached = functools.lru_cache(2 * config.batch.prompts)(self._prompt)
    # Each process tokenises its part; lengths are gathered, so all keep the same examples.
    local = []
    for i in hosts.local_part(range(len(examples))):
      prompt, target = self._measure(examples[i], i < SAMPLE)
      if self._fits(prompt, target):
        local.append((i, prompt, target))
    fitting = sorted(sum(hosts.all_gather_json(local), []))
    if examples and not fitting:
      raise UserError(self._none_fits(len(examples)))
    self.examples = [examples[i] for i, _, _ in fitting]
    self.prompt_tokens = [prompt for _, prompt, _ in fitting]
    self.target_tokens = [target for _, _, target in fitting if target is not None]
    self.too_long = len(examples) - len(fitting)
    self.think_opened = bool(fitting) and self._encode(self.examples[0]).think_opened

  def prompt(self, index: int) -> Prompt:
    """Returns the prompt of examples[index], under the example's id."""
    return self._cached(index)

  def all_prompts(self) -> list[Prompt]:
    """Returns all prompts, in the order of the examples."""
    return [self.prompt(index) for index in range(len(self.examples))]

  def target(self, index: int) -> str:
    """Returns the response to learn of examples[index], as it follows its prompt.

    An open tag that the chat template writes belongs to the prompt and not to the response.
    """
    example = self.examples[index]
    return _target(example, self._encode(example))

  def _prompt(self, index: int) -> Prompt:
    example = self.examples[index]
    return Prompt(example.id, tuple(self._encode(example).token_ids))

  def _encode(self, example: StepExample) -> EncodedPrompt:
    task = TASKS[example.task]
    messages = task.build_messages(
      example.problem,
      [self._shorten(text) for text in example.context],
      example.hint,
      self._system(example.task),
    )
    return encode(self._tokenizer, messages, opens_think(task, self._wording))

  def _shorten_observation(self, text: str) -> str:
    limit = self._config.prompt.observation_tokens
    return shorten_observation(text, limit, self._tokenizer)

  def _system_prompt(self, task: str) -> str:
    return system_prompt(TASKS[task], self._wording)

  def _measure(self, example: StepExample, in_sample: bool) -> tuple[int, int | None]:
    """Tokens of the prompt, and of the target if it is trained on or `in_sample`."""
    encoded, target = self._encode(example), None
    if in_sample or self._config.method == SUPERVISED:
      text = _target(example, encoded)
      # One more for the token that ends the response.
      target = len(self._tokenizer(text, add_special_tokens=False)["input_ids"]) + 1
    return len(encoded.token_ids), target

  def _fits(self, prompt: int, target: int | None) -> bool:
    if prompt > self._config.data.max_prompt_tokens:
      return False
    return self._config.method != SUPERVISED or prompt + target <= self._room

  def _none_fits(self, count: int) -> str:
    config, more = self._config, ""
    if config.method == SUPERVISED:
      name = "the model's max_position_embeddings"
      if self._room == config.batch.tokens_per_device:
        name = "batch.tokens_per_device"
      more = f", or with their responses than {name} ({self._room})"
    limit = config.data.max_prompt_tokens
    return (
      f"data.max_prompt_tokens: all {count} prompts are longer than {limit} tokens{more}; raise it"
    )


def _target(example: StepExample, prompt: EncodedPrompt) -> str:
  return after_opened_tag(example.target) if prompt.think_opened else example.target
