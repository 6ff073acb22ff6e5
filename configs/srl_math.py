"""SRL on s1K-1.1 with Qwen2.5-7B-Instruct: the paper's main experiment (Table 1, SRL; Table 7).

  launch/run.sh configs/srl_math.py                                   8 x H100
  SRL_TPU_NAME=NAME launch/tpu_pod.sh configs/srl_math.py --config.mesh=v5p-128 --workdir=DIR  a pod
  launch/run.sh configs/srl_math.py:model=Qwen/Qwen2.5-0.5B-Instruct,tiny   a laptop's CPU

Arguments: model, a Hugging Face name or folder; data, a Hugging Face dataset, a JSON lines file or
a folder that srl_jax.prepare wrote; problem, solution and answer, its columns (reasoning, which
sft_reasoning alone reads); tiny, a small batch with short responses, to see the whole route run.

The paper's figures, greedy accuracy in % (AMC23, AIME24, AIME25, Minerva Math): 50.0, 16.7, 13.3,
36.4 after SRL; 50.0, 13.3, 6.7, 34.9 before.
"""

from srl_jax.config import defaults, learn_from, parse_arg

ARGUMENTS = dict(
  model="Qwen/Qwen2.5-7B-Instruct",
  data="simplescaling/s1K-1.1",
  problem="question",
  solution="deepseek_attempt",
  answer="solution",
  reasoning="deepseek_thinking_trajectory",
  tiny=False,
)


def get_config(arg=None):
  return configure(parse_arg(arg, **ARGUMENTS))


def configure(args):
  """The config for parsed arguments."""
  config = defaults()
  columns = dict(problem=args.problem, solution=args.solution, answer=args.answer)
  learn_from(config, args.model, args.data, **columns)
  if args.tiny:
    tiny(config)
  return config


def tiny(config):
  """The same experiment, small enough for a CPU: three steps on short prompts."""
  config.mesh = "cpu"
  config.dtype = "float32"  # bfloat16 is emulated on most CPUs
  config.data.holdout = 4
  config.data.max_prompt_tokens = 512
  config.rollout.samples = 4
  config.rollout.max_tokens = 96
  config.rollout.width = 16
  config.batch.prompts = 4
  config.batch.tokens_per_device = 2048
  config.batch.logprob_chunk = 128
  config.algorithm.max_rounds = 2
  config.train.steps = 3
  config.train.eval_every = 0
  config.eval.mode = "off"
  config.eval.max_tokens = 96
