"""Stand-in until branch tasks is merged."""

import functools

from srl_jax import hosts
from srl_jax.data import prompts
from srl_jax.data.sources import StepExample
from srl_jax.errors import UserError
from srl_jax.rollout.engine import Prompt


class PromptSet:
  """Examples whose prompts are short enough, and those prompts, tokenised when they are asked for:
  134,000 prompts of 4,000 tokens would not fit into memory.

  Fields: examples; think_opened, whether the template opens the think block; too_long, how many
  examples were left out because of data.max_prompt_tokens, or, for sft, because prompt and response
  together exceed batch.tokens_per_device.
  """

  def __init__(self, config, tokenizer, examples: list[StepExample]):
    """Raises UserError when there are examples and none is short enough."""
    self._tokenizer, self._domain = tokenizer, config.data.domain
    self._system = functools.cache(
      lambda task: prompts.system_prompt(
        task,
        "think" if task == "srl" else config.prompt.style,
        config.prompt.system_file,
        domain=config.data.domain,
      )
    )
    self._kept = functools.lru_cache(2 * config.batch.prompts)(self._prompt)
    limit, room = config.data.max_prompt_tokens, config.batch.tokens_per_device

    def fits(example):
      prompt = len(self._encode(example).token_ids)
      if config.method == "sft" and prompt <= limit:
        response = tokenizer(example.target, add_special_tokens=False)["input_ids"]
        return prompt + len(response) + 1 <= room  # and the token that ends it
      return prompt <= limit

    mine = [i for i in hosts.local_part(range(len(examples))) if fits(examples[i])]
    short = sorted(sum(hosts.all_gather_json(mine), []))
    if examples and not short:
      more = f", or with their responses than batch.tokens_per_device ({room})"
      raise UserError(
        f"data.max_prompt_tokens: all {len(examples)} prompts are longer than {limit} tokens"
        f"{more if config.method == 'sft' else ''}; raise it"
      )
    self.examples = [examples[i] for i in short]
    self.too_long = len(examples) - len(short)
    self.think_opened = bool(short) and self._encode(self.examples[0]).think_opened

  def prompt(self, index: int) -> Prompt:
    """The prompt of examples[index], under the example's id; those asked for last are kept."""
    return self._kept(index)

  def _prompt(self, index: int) -> Prompt:
    example = self.examples[index]
    return Prompt(example.id, tuple(self._encode(example).token_ids))

  def all_prompts(self) -> list[Prompt]:
    """All of them."""
    return list(map(self.prompt, range(len(self.examples))))

  def _encode(self, example: StepExample) -> prompts.EncodedPrompt:
    messages = prompts.build_messages(
      example.problem,
      example.context,
      example.hint,
      self._system(example.task),
      domain=self._domain,
    )
    return prompts.encode(self._tokenizer, messages)
