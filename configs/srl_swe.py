"""SRL on SWE-smith trajectories with Qwen2.5-Coder-7B-Instruct (paper, 5.3; Table 4, SRL).

  launch/run.sh configs/srl_swe.py                                    8 x H100
  SRL_TPU_NAME=NAME launch/tpu_pod.sh configs/srl_swe.py --config.mesh=v5p-128 --workdir=DIR   a pod
  launch/run.sh configs/srl_swe.py:model=DIR,data=FILE,tiny           a laptop's CPU

An action is a function call; the prompt has the issue and the last two (action, observation) pairs.

Arguments: model, a Hugging Face name or folder; data, a Hugging Face dataset, a JSON lines file or
a folder that srl_jax.prepare wrote; split, of a dataset; messages and id, its columns (`id=` where
there is none); expert, the agent that made the runs, and resolved, whether only those are used that
resolved their issue (`expert=,resolved=false` for rows without these columns); tiny, to see the
whole route run.

The paper's figures, resolve rate in % (oracle file edit, end to end): 14.8, 8.6 after SRL; 5.8, 3.2
before; 8.4, 4.2 SWE-Gym-7B, which was fine-tuned from the same model.
"""

from srl_jax.config import defaults, learn_from, parse_arg

SWE_SMITH = "SWE-bench/SWE-smith-trajectories"


def get_config(arg=None):
  args = parse_arg(
    arg,
    model="Qwen/Qwen2.5-Coder-7B-Instruct",
    data=SWE_SMITH,
    split="xml",  # its other splits hold the runs in other forms
    messages="messages",
    id="traj_id",
    expert="claude-3-7-sonnet-20250219",
    resolved=True,
    tiny=False,
  )
  config = defaults()
  learn_from(config, args.model, args.data, solution=args.messages, id=args.id)
  config.data.domain = "swe"
  config.data.split = args.split
  config.data.swe.expert = args.expert
  config.data.swe.resolved = args.resolved
  config.data.swe.runs = 5000  # the paper's
  config.data.swe.pairs = 2
  config.data.keep_last_step = True  # most runs end with submit, which is to be learnt as well
  config.data.holdout = 30  # trajectories
  config.data.max_prompt_tokens = 6144  # measured: 2,000 at the median, 5,600 at most
  config.rollout.max_tokens = 3072  # the longest action of 537 has 2,200 tokens, 99 % have 1,250
  config.eval.mode = "off"  # the step reward is validated; actions have no final answer
  if args.tiny:
    tiny(config)
  return config


def tiny(config):
  """The same experiment, small enough for a CPU: two steps on short prompts."""
  config.mesh = "cpu"
  config.dtype = "float32"  # bfloat16 is emulated on most CPUs
  config.data.holdout = 1
  config.prompt.observation_tokens = 150
  config.data.swe.validation_steps = 4
  config.data.max_prompt_tokens = 1536
  config.rollout.samples = 4
  config.rollout.max_tokens = 128
  config.rollout.width = 8
  config.batch.prompts = 2
  config.batch.tokens_per_device = 4096  # sft_swe.py: the longest response has 2,300 tokens
  config.batch.logprob_chunk = 128
  config.algorithm.max_rounds = 2
  config.train.steps = 2
  config.train.eval_every = 2
  config.train.save_every = 2
