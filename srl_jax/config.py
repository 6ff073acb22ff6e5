"""The base of all configs: the paper's values, arguments of a config file, meshes, checks."""

import functools
import math

from ml_collections import ConfigDict

from srl_jax.addresses import check_no_secret
from srl_jax.errors import UserError

# Devices -> mesh. Weights are sharded within a node or slice (fsdp) and replicated across (data).
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
  """Returns the arguments of a config file, `file.py:tiny,model=DIR,lr=1e-6`, as typed values.

  Args:
    arg: the text after the colon, or None. A name without a value means True.
    **defaults: each allowed name with its default; values are converted to the default's type.

  Returns:
    ConfigDict of all names.

  Raises:
    UserError: a name is unknown or a value has the wrong type.
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
  """Returns the text as the type of the default."""
  if isinstance(default, bool):
    if text.lower() in ("true", "false"):
      return text.lower() == "true"
    raise UserError(f"config argument {name}={text!r} is not true or false")
  try:
    return type(default)(text)
  except ValueError:
    raise UserError(f"config argument {name}={text!r} is not a {type(default).__name__}") from None


def defaults() -> ConfigDict:
  """Returns every key with the paper's value or, if the paper states none, ours with the reason."""
  config = ConfigDict()
  config.method = "srl"  # srl | one_step | rlvr | sft | a name added to srl_jax.tasks.TASKS
  config.seed = 0
  config.model = "Qwen/Qwen2.5-7B-Instruct"  # Hugging Face name or folder; dense Qwen or Llama
  config.init_from = ""  # other initial weights: a run's workdir (best step), a folder, "random"
  config.dtype = "bfloat16"  # of computation; weights and moments are float32
  config.mesh = "h100x8"  # a name in MESHES, or "data=1,fsdp=8,tensor=1"

  config.data = ConfigDict()
  config.data.source = "hub"  # hub | jsonl | arithmetic
  config.data.path = ""  # dataset name | file or prepared folder | which problems
  config.data.split = "train"
  config.data.domain = "math"  # math: numbered solutions | swe: an agent's trajectories
  config.data.fields = ConfigDict(dict(id="", problem="", solution="", answer="", reasoning=""))
  config.data.learn_steps = False  # sft: single steps after short monologues, to teach the format
  config.data.title_hint = False
  config.data.keep_last_step = False  # the paper: k = 1..N-1
  config.data.holdout = 60  # problems
  config.data.solutions_per_problem = 0  # for SRL; 0: all. The paper's data has one
  config.data.max_prompt_tokens = 4096
  config.data.accept_change = False  # continue a run although its data has changed
  config.data.swe = ConfigDict()  # for trajectories, data.domain = "swe" (data.runs)
  config.data.swe.expert = "claude-3-7-sonnet-20250219"  # agent that made the runs; "": any
  config.data.swe.resolved = True  # only runs that resolved their issue
  config.data.swe.runs = 5000  # at most; 0: all
  config.data.swe.pairs = 2  # (action, observation) pairs in a prompt
  config.data.swe.validation_steps = 650  # drawn from the held-out runs; 0: all

  config.prompt = ConfigDict()
  config.prompt.system_file = ""  # replaces our system prompt
  config.prompt.observation_tokens = 1800  # longest observation shown; 90 % are shorter
  config.prompt.style = "think"  # of whole solutions: plain | think
  # For models that do not follow the response format, see docs/form.md:
  config.prompt.example = False  # a worked answer in the system prompt
  config.prompt.open_think = False  # the prompt ends with an open think tag

  config.reward = ConfigDict()
  config.reward.similarity = "difflib"  # of action and target: a name in srl_jax.rewards
  config.reward.autojunk = False  # difflib: the paper's formula has no junk rule
  config.reward.format_penalty = -1.0  # reward of a malformed response

  config.rollout = ConfigDict()
  config.rollout.engine = "builtin"  # builtin | vllm
  # vllm: base URLs, separated by commas; launch/run.sh starts a server if "". Several trainer
  # processes share servers and prompts among them; a single server is used by process 0 alone.
  config.rollout.servers = ""
  config.rollout.public_servers = False  # allow servers outside loopback and private networks
  config.rollout.weights_root = "/dev/shm"  # shared with the servers (their SRL_WEIGHTS_ROOT)
  config.rollout.samples = 8
  config.rollout.temperature = 1.0
  config.rollout.max_tokens = 2048
  config.rollout.patience = 600.0  # vllm: seconds to wait for a server if none is reachable
  config.rollout.lag = 0  # vllm: 1 samples the next batch while this one trains
  config.rollout.width = 256  # responses that the built-in engine decodes at the same time

  config.algorithm = ConfigDict()
  config.algorithm.clip_low = 0.2
  config.algorithm.clip_high = 0.2
  config.algorithm.std_epsilon = 0.01  # one wrong digit in one of eight short steps: std 0.015
  config.algorithm.dynamic_sampling = True
  config.algorithm.max_rounds = 10
  config.algorithm.advantage_ddof = 0  # as in the filter; verl: 1
  config.algorithm.advantage_scale = "std"
  config.algorithm.aggregate = "sequence"  # eq. (1)
  config.algorithm.kl = 0.0
  config.algorithm.importance_cap = 2.0  # 0 = no importance weights
  config.algorithm.steps_per_batch = 1

  # Adapters beside frozen weights; values of "LoRA Without Regret" (Thinking Machines Lab, 2025).
  config.lora = ConfigDict()
  config.lora.rank = 0  # 0: all weights are trained; 1 to 16 learn as much in RL, SFT needs more
  config.lora.alpha = 32.0  # adapters count alpha / rank times: the best lr then fits every rank
  config.lora.targets = "all"  # attention | mlp | all: attention alone learns less
  # vllm: where servers take no adapters, push whole weights that contain them although bfloat16
  # rounds small changes away. Into float32 servers that is always done.
  config.lora.merged_push = False
  config.lora.lr_factor = 10.0  # optimizer.lr times this: LoRA's best rate was 10 x full tuning's

  config.optimizer = ConfigDict()
  config.optimizer.lr = 5e-7  # of full fine-tuning; lora.lr_factor multiplies it
  config.optimizer.schedule = "constant"
  config.optimizer.warmup = 0.0  # share of all steps
  config.optimizer.b2 = 0.999
  config.optimizer.weight_decay = 0.0
  config.optimizer.grad_norm = 1.0

  config.batch = ConfigDict()
  config.batch.prompts = 512
  config.batch.tokens_per_device = 16384  # of a micro-batch
  config.batch.logprob_chunk = 0  # trained tokens with logits at one time; 0: learner.update.CHUNK
  config.batch.remat = "auto"  # or full, attention, matmuls, none: more memory each, and faster

  config.train = ConfigDict()
  config.train.epochs = 30
  config.train.steps = 0  # 0: as many as the epochs need
  config.train.stop_at = 0.0  # sft: share of exact held-out responses, see sft.py; 0: never
  config.train.eval_every = 10
  config.train.save_every = 10
  config.train.keep = 2

  config.eval = ConfigDict()  # of final answers; the step reward is validated in any case
  config.eval.mode = "whole"  # whole | stepwise | off
  config.eval.benchmark = ""  # measured before and after the run: "arithmetic" or none
  config.eval.samples = 8
  config.eval.max_tokens = 4096
  config.eval.max_turns = 12

  config.log = ConfigDict()
  config.log.report = True  # WORKDIR/report.html, written by another process once a minute
  config.log.tensorboard = True
  config.log.wandb = ""  # name of a project
  return config.lock()


def learn_from(config, model: str, data: str, **fields: str) -> None:
  """Sets the model, the data (a file or folder, else a hub dataset) and its columns."""
  from srl_jax.data.rows import is_local  # imported here because data is above this module

  config.model = model
  config.data.source = "jsonl" if is_local(data) else "hub"
  config.data.path = data
  config.data.fields.update(fields)


def supervised(config) -> None:
  """Changes a config to supervised fine-tuning, as in Table 5 of the paper."""
  config.method = "sft"
  config.optimizer.lr = 5e-6
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup = 0.3
  config.batch.prompts = min(64, config.batch.prompts)
  config.train.epochs = 3


# Keys with a fixed set of values.
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
  "lora.targets": ("attention", "mlp", "all"),
  "batch.remat": ("auto", "none", "matmuls", "attention", "full"),
  "optimizer.schedule": ("constant", "cosine", "linear"),
  "eval.mode": ("whole", "stepwise", "off"),
}
# Every numeric key is in one of these two or in LIMITS.
POSITIVE = (
  *("rollout.samples", "rollout.max_tokens", "rollout.width", "algorithm.max_rounds"),
  *("algorithm.steps_per_batch", "optimizer.lr", "optimizer.grad_norm", "batch.prompts"),
  *("batch.tokens_per_device", "train.save_every", "train.keep"),
  *("data.max_prompt_tokens", "eval.samples", "eval.max_tokens", "eval.max_turns"),
  *("prompt.observation_tokens", "rollout.patience", "lora.alpha", "lora.lr_factor"),
)
NOT_NEGATIVE = (
  *("data.holdout", "data.solutions_per_problem"),
  *("rollout.temperature", "algorithm.kl", "algorithm.importance_cap", "batch.logprob_chunk"),
  *("data.swe.runs", "data.swe.pairs", "data.swe.validation_steps"),
  *("algorithm.std_epsilon", "algorithm.clip_low", "algorithm.clip_high", "optimizer.weight_decay"),
  *("train.epochs", "train.steps", "train.eval_every", "train.stop_at", "lora.rank"),
)
# {key: (lowest, highest, reason)}
LIMITS = {
  "seed": (0, 2**32 - 1, "random keys take 32 bits"),
  "reward.format_penalty": (-1000, 0, "a malformed response must not be rewarded"),
}
LARGEST = 2**31 - 1  # of integers; JAX arrays use 32 bits


def mesh_spec(config) -> str:
  """Returns config.mesh as "data=1,fsdp=8,tensor=1".

  Raises:
    UserError: it is neither a name in MESHES nor a list of sizes.
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
  """Raises UserError for a value that is out of range, or for values that contradict each other."""
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
  """Raises UserError for a number that is not finite or out of range."""
  for key in (*POSITIVE, *NOT_NEGATIVE, *LIMITS, "optimizer.b2", "optimizer.warmup"):
    value = _value(config, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
      raise UserError(f"{key}: {value!r} is not a finite number")
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
  """Raises UserError for addresses with a password: a run's config.json is readable by everyone."""
  check_no_secret(
    servers,
    place="rollout.servers",
    remedy="servers accept only API keys, which are read from VLLM_API_KEY",
  )


def _value(config, key: str):
  """Returns the value of "group.name"; UserError if the config does not have the key."""
  try:
    return functools.reduce(lambda group, name: group[name], key.split("."), config)
  except (KeyError, TypeError):
    raise UserError(f"{key}: missing in the config; start from srl_jax.config.defaults()") from None


def _names() -> dict[str, list[str]]:
  """Returns {key: allowed names} for keys to which a config file can add names."""
  # Imported here because tasks and rewards are above this module in the import order.
  from srl_jax.rewards import SIMILARITIES
  from srl_jax.tasks import methods

  return {"method": methods(), "reward.similarity": list(SIMILARITIES)}


# A rule is (whether it is violated, message).
Rules = list[tuple[bool, str]]


def _rules_of_data(config) -> Rules:
  """Returns the rules about model, prompts and data."""
  return [
    (not config.model, "model: give a Hugging Face name or a folder"),
    (
      (config.prompt.example or config.prompt.open_think) and config.method in ("one_step", "rlvr"),
      f"prompt.example, prompt.open_think: responses of {config.method} are whole solutions, but"
      " these are for single steps; set both to False",
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
  """Returns the rules about the number of steps and the optimiser."""
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
  """Returns the rules about sampled groups, which supervised fine-tuning does not have."""
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
      f"rollout.lag: the built-in engine samples on-policy, so {rollout.lag} must be 0",
    ),
    (
      rollout.engine == "vllm" and not rollout.servers,
      "rollout.servers: give the base URLs of vLLM servers (launch/vllm_server.sh starts one), "
      "or start the run with launch/run.sh, which then starts a server for it",
    ),
    (
      rollout.engine == "vllm" and config.lora.rank > 512,
      f"lora.rank: {config.lora.rank}; vLLM serves adapters up to rank 512",
    ),
    (
      rollout.samples > rollout.width and rollout.engine == "builtin",
      f"rollout.width: {rollout.width} is less than rollout.samples ({rollout.samples})",
    ),
  ]
