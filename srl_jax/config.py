"""The base of all configs: the paper's values, arguments of a config file, meshes, checks."""

import functools
import math

from ml_collections import ConfigDict

from srl_jax.addresses import check_no_secret
from srl_jax.errors import UserError

# Devices -> mesh. Weights are cut inside a node or a slice (fsdp), copied between nodes (data).
MESHES = {
  "cpu": "data=1,fsdp=1,tensor=1",
  "h100x1": "data=1,fsdp=1,tensor=1",
  "h100x8": "data=1,fsdp=8,tensor=1",
  "h100x32": "data=4,fsdp=8,tensor=1",
  "v5e-16": "data=1,fsdp=16,tensor=1",
  "v5p-128": "data=1,fsdp=64,tensor=1",  # Google counts cores: 64 chips
  "v6e-256": "data=16,fsdp=16,tensor=1",  # a torus of 16 x 16
}


def parse_arg(arg: str | None, **defaults):
  """Returns the arguments of a config file, `file.py:tiny,model=DIR,lr=1e-6`, with their types.

  Args:
    arg: the text after the colon, or None. A name alone means True.
    **defaults: each allowed name with its default; the value gets the type of the default.

  Returns:
    ConfigDict of all names. Raises UserError for an unknown name or a value of the wrong type.
  """
  values = ConfigDict(defaults)
  for item in filter(None, (arg or "").split(",")):
    name, given, text = item.partition("=")
    if name not in defaults:
      raise UserError(
        f"config argument {name!r} is unknown; this config takes {', '.join(defaults) or 'none'}"
      )
    values[name] = _typed(name, text if given else "true", defaults[name])
  return values


def _typed(name, text, default):
  if isinstance(default, bool):
    if text.lower() in ("true", "false"):
      return text.lower() == "true"
    raise UserError(f"config argument {name}={text!r} is not true or false")
  try:
    return type(default)(text)
  except ValueError:
    raise UserError(f"config argument {name}={text!r} is not a {type(default).__name__}") from None


def defaults() -> ConfigDict:
  """Returns every key with the paper's value or, where it gives none, ours with the reason."""
  config = ConfigDict()
  config.method = "srl"  # srl | one_step | rlvr | sft | a name added to srl_jax.tasks.TASKS
  config.seed = 0
  config.model = "Qwen/Qwen2.5-7B-Instruct"  # a Hugging Face name or folder, dense Qwen or Llama
  config.init_from = ""  # other start weights: a run's workdir (its best step), a folder, "random"
  config.dtype = "bfloat16"  # of computation; weights and moments are float32
  config.mesh = "h100x8"  # a name in MESHES, or "data=1,fsdp=8,tensor=1"

  config.data = ConfigDict()
  config.data.source = "hub"  # hub | jsonl | arithmetic
  config.data.path = ""  # dataset name | file or prepared folder | which problems
  config.data.split = "train"
  config.data.domain = "math"  # math: numbered solutions | swe: an agent's trajectories
  config.data.fields = ConfigDict(dict(id="", problem="", solution="", answer="", reasoning=""))
  config.data.learn_steps = False  # sft: single steps after short monologues, to teach the form
  config.data.title_hint = False
  config.data.keep_last_step = False  # the paper: k = 1..N-1
  config.data.holdout = 60  # problems
  config.data.solutions_per_problem = 0  # of SRL, at most; 0: all. The paper's data has one
  config.data.max_prompt_tokens = 4096
  config.data.accept_change = False  # go on although the data has changed; else that is refused
  config.data.swe = ConfigDict()  # of trajectories, data.domain = "swe" (data.runs)
  config.data.swe.expert = "claude-3-7-sonnet-20250219"  # that made the runs; "": any
  config.data.swe.resolved = True  # only runs that resolved their issue
  config.data.swe.runs = 5000  # at most; 0: all
  config.data.swe.pairs = 2  # (action, observation) pairs in a prompt
  config.data.swe.validation_steps = 650  # of the held-out trajectories; 0: all

  config.prompt = ConfigDict()
  config.prompt.system_file = ""  # replaces our system prompt
  config.prompt.observation_tokens = 1800  # of one of an agent's, 90 % are shorter
  config.prompt.style = "think"  # of whole solutions: plain | think
  # For models that do not follow the form of a step, see docs/rollouts.md:
  config.prompt.example = False  # a worked answer in the system prompt
  config.prompt.open_think = False  # the prompt ends with an opened think block

  config.reward = ConfigDict()
  config.reward.similarity = "difflib"  # of action and target: a name in srl_jax.rewards
  config.reward.autojunk = False  # difflib: the paper's formula has no junk rule
  config.reward.format_penalty = -1.0

  config.rollout = ConfigDict()
  config.rollout.engine = "builtin"  # builtin | vllm
  # vllm: base URLs, commas between; launch/run.sh starts one if "". Several trainer processes get
  # one after the other in turn, and share the prompts; of a single server the first has all.
  config.rollout.servers = ""
  config.rollout.public_servers = False  # allow servers outside loopback and private networks
  config.rollout.weights_root = "/dev/shm"  # shared with the servers (their SRL_WEIGHTS_ROOT)
  config.rollout.samples = 8
  config.rollout.temperature = 1.0
  config.rollout.max_tokens = 2048
  config.rollout.patience = 600.0  # vllm: seconds to wait for a server when all are lost
  config.rollout.lag = 0  # vllm: 1 samples the next batch while this one trains
  config.rollout.width = 256  # responses that the built-in engine decodes side by side

  config.algorithm = ConfigDict()
  config.algorithm.clip_low = 0.2
  config.algorithm.clip_high = 0.2
  config.algorithm.std_epsilon = 0.01  # one wrong digit of a short step, one of eight: 0.015
  config.algorithm.dynamic_sampling = True
  config.algorithm.max_rounds = 10
  config.algorithm.advantage_ddof = 0  # as in the filter; verl: 1
  config.algorithm.advantage_scale = "std"
  config.algorithm.aggregate = "sequence"  # eq. (1)
  config.algorithm.kl = 0.0
  config.algorithm.importance_cap = 2.0  # 0 = no importance weights
  config.algorithm.steps_per_batch = 1

  config.optimizer = ConfigDict()
  config.optimizer.lr = 5e-7
  config.optimizer.schedule = "constant"
  config.optimizer.warmup = 0.0  # share of all steps
  config.optimizer.b2 = 0.999
  config.optimizer.weight_decay = 0.0
  config.optimizer.grad_norm = 1.0

  config.batch = ConfigDict()
  config.batch.prompts = 512
  config.batch.tokens_per_device = 16384  # of a micro-batch
  config.batch.logprob_chunk = 512  # trained tokens of a device with logits in memory at one time
  config.batch.remat = "full"  # least memory; matmuls: keep their results; none: fastest

  config.train = ConfigDict()
  config.train.epochs = 30
  config.train.steps = 0  # 0: as many as the epochs need
  config.train.stop_at = 0.0  # sft: share of exact held-out responses, see sft.py; 0: never
  config.train.eval_every = 10
  config.train.save_every = 10
  config.train.keep = 2

  config.eval = ConfigDict()  # of final answers; the step reward is always validated
  config.eval.mode = "whole"  # whole | stepwise | off
  config.eval.benchmark = ""  # measured before and after the run: "arithmetic" or none
  config.eval.samples = 8
  config.eval.max_tokens = 4096
  config.eval.max_turns = 12

  config.log = ConfigDict()
  config.log.tensorboard = True
  config.log.wandb = ""  # a project's name
  return config.lock()


def learn_from(config, model: str, data: str, **fields: str) -> None:
  """Sets the model, the data (a file or folder that exists, else a hub dataset) and its columns."""
  # Imported here because data is above this module.
  from srl_jax.data.rows import is_local

  config.model = model
  config.data.source = "jsonl" if is_local(data) else "hub"
  config.data.path = data
  config.data.fields.update(fields)


def supervised(config) -> None:
  """Makes it supervised fine-tuning, as in Table 5 of the paper."""
  config.method = "sft"
  config.optimizer.lr = 5e-6
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup = 0.3
  config.batch.prompts = min(64, config.batch.prompts)
  config.train.epochs = 3


CHOICES = {
  "dtype": ("bfloat16", "float32"),
  "data.source": ("hub", "jsonl", "arithmetic"),
  "data.domain": ("math", "swe"),
  "prompt.style": ("think", "plain"),
  "rollout.engine": ("builtin", "vllm"),
  "rollout.lag": (0, 1),
  "algorithm.advantage_scale": ("std", "none"),
  "algorithm.aggregate": ("sequence", "token", "constant"),
  "algorithm.advantage_ddof": (0, 1),
  "batch.remat": ("none", "matmuls", "full"),
  "optimizer.schedule": ("constant", "cosine", "linear"),
  "eval.mode": ("whole", "stepwise", "off"),
}
# Every number of the config is in one of these two, or in LIMITS.
POSITIVE = (
  *("rollout.samples", "rollout.max_tokens", "rollout.width", "algorithm.max_rounds"),
  *("algorithm.steps_per_batch", "optimizer.lr", "optimizer.grad_norm", "batch.prompts"),
  *("batch.tokens_per_device", "batch.logprob_chunk", "train.save_every", "train.keep"),
  *("data.max_prompt_tokens", "eval.samples", "eval.max_tokens", "eval.max_turns"),
  *("prompt.observation_tokens", "rollout.patience"),
)
NOT_NEGATIVE = (
  *("data.holdout", "data.solutions_per_problem"),
  *("rollout.temperature", "algorithm.kl", "algorithm.importance_cap"),
  *("data.swe.runs", "data.swe.pairs", "data.swe.validation_steps"),
  *("algorithm.std_epsilon", "algorithm.clip_low", "algorithm.clip_high", "optimizer.weight_decay"),
  *("train.epochs", "train.steps", "train.eval_every", "train.stop_at"),
)
# {key: (lowest, highest, why)}
LIMITS = {
  "seed": (0, 2**32 - 1, "random keys take 32 bits"),
  "reward.format_penalty": (-1000, 0, "a broken format may not be paid"),
}
LARGEST = 2**31 - 1  # of whole numbers; arrays count in 32 bits


def mesh_spec(config) -> str:
  """Returns config.mesh as "data=1,fsdp=8,tensor=1".

  Raises UserError unless it is a name in MESHES or sizes.
  """
  # Imported here because it imports JAX, which prepare does not need.
  from srl_jax.policy.sharding import AXES, parse_mesh

  if config.mesh not in MESHES and "=" not in config.mesh:
    raise UserError(
      f"mesh: {config.mesh!r} is not one of {', '.join(MESHES)}, nor sizes such as "
      f"{'=1,'.join(AXES)}=1"
    )
  spec = MESHES.get(config.mesh, config.mesh)
  parse_mesh(spec)
  return spec


def check(config) -> None:
  """Raises UserError for a value that is out of range, or two that contradict each other."""
  for key, allowed in (CHOICES | _names()).items():
    if _value(config, key) not in allowed:
      raise UserError(
        f"{key}: {_value(config, key)!r} is unknown; use {' | '.join(map(str, allowed))}"
      )
  _check_numbers(config)
  check_servers(config.rollout.servers)
  mesh_spec(config)
  rules = _rules_of_data(config) + _rules_of_training(config)
  if config.method != "sft":
    rules += _rules_of_groups(config)
  for broken, message in rules:
    if broken:
      raise UserError(message)


def _check_numbers(config) -> None:
  """Raises UserError for a number that is not finite or out of its range."""
  for key in (*POSITIVE, *NOT_NEGATIVE, *LIMITS, "optimizer.b2", "optimizer.warmup"):
    value = _value(config, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
      raise UserError(f"{key}: {value!r} is not a number to compute with")
    if key in POSITIVE and not value > 0:
      raise UserError(f"{key}: {value!r} must be greater than 0")
    if key in NOT_NEGATIVE and not value >= 0:
      raise UserError(f"{key}: {value!r} must not be negative")
    if isinstance(value, int) and key not in LIMITS and value > LARGEST:
      raise UserError(f"{key}: {value!r} must be at most {LARGEST}")
  for key, (lowest, highest, why) in LIMITS.items():
    value = _value(config, key)
    if not lowest <= value <= highest:
      raise UserError(f"{key}: {value!r} must be from {lowest} to {highest}: {why}")


def check_servers(servers: str) -> None:
  """Raises UserError for addresses with a password, as a run's config.json is readable by all."""
  check_no_secret(
    servers,
    place="rollout.servers",
    remedy="the servers know API keys only, which are read from VLLM_API_KEY",
  )


def _value(config, key: str):
  """The value of "group.name"."""
  try:
    return functools.reduce(lambda group, name: group[name], key.split("."), config)
  except (KeyError, TypeError):
    raise UserError(
      f"{key}: the config has none; begin it with srl_jax.config.defaults()"
    ) from None


def _names() -> dict[str, list[str]]:
  """Keys with the names that they may have; a config file may have added its own."""
  # Imported here because tasks and rewards are above this module.
  from srl_jax.rewards import SIMILARITIES
  from srl_jax.tasks import methods

  return {"method": methods(), "reward.similarity": list(SIMILARITIES)}


# A rule is a pair: whether it is broken, and the message.
Rules = list[tuple[bool, str]]


def _rules_of_data(config) -> Rules:
  return [
    (not config.model, "model: give a Hugging Face name or a folder"),
    (
      (config.prompt.example or config.prompt.open_think) and config.method in ("one_step", "rlvr"),
      f"prompt.example, prompt.open_think: {config.method}'s responses are whole solutions, these"
      " are for single steps; set both to False",
    ),
    (
      config.data.source != "arithmetic" and not config.data.path,
      "data.path: give the dataset's name (data.source=hub) or a file (jsonl)",
    ),
    (
      config.eval.benchmark and config.eval.mode == "off",
      "eval.benchmark needs eval.mode whole or stepwise",
    ),
    (
      config.data.max_prompt_tokens + config.rollout.max_tokens > config.batch.tokens_per_device,
      f"batch.tokens_per_device: {config.batch.tokens_per_device} cannot hold a prompt of "
      f"data.max_prompt_tokens ({config.data.max_prompt_tokens}) with a response of "
      f"rollout.max_tokens ({config.rollout.max_tokens}); raise the first or lower the others",
    ),
  ]


def _rules_of_training(config) -> Rules:
  return [
    (
      not (config.train.steps or config.train.epochs),
      "train.steps and train.epochs are both 0: set one of them",
    ),
    (
      not 0 <= config.optimizer.warmup < 1,
      f"optimizer.warmup: {config.optimizer.warmup} is a share of all steps, in [0, 1)",
    ),
    (
      not 0 <= config.optimizer.b2 < 1,
      f"optimizer.b2: {config.optimizer.b2} is the decay of Adam's second moment, in [0, 1)",
    ),
    (
      config.train.stop_at > 1,
      f"train.stop_at: {config.train.stop_at} is a share of exact answers, at most 1",
    ),
    (
      config.train.stop_at and not config.data.holdout,
      "train.stop_at: the share is taken over held-out examples; set data.holdout above 0",
    ),
  ]


def _rules_of_groups(config) -> Rules:
  """Of groups of sampled responses, which supervised fine-tuning has none of."""
  rollout = config.rollout
  return [
    (
      rollout.temperature == 0,
      "rollout.temperature: 0 samples eight equal responses; training needs a value > 0",
    ),
    (
      rollout.samples <= config.algorithm.advantage_ddof or rollout.samples < 2,
      f"rollout.samples: a group of {rollout.samples} has no advantages; use at least 2",
    ),
    (
      rollout.lag != 0 and rollout.engine == "builtin",
      f"rollout.lag: the built-in engine samples on-policy; {rollout.lag} must be 0",
    ),
    (
      rollout.engine == "vllm" and not rollout.servers,
      "rollout.servers: give the base URLs of vLLM servers (launch/vllm_server.sh starts one), "
      "or start the run with launch/run.sh, which then starts a server for it",
    ),
    (
      rollout.samples > rollout.width and rollout.engine == "builtin",
      f"rollout.width: {rollout.width} is less than rollout.samples ({rollout.samples})",
    ),
  ]
