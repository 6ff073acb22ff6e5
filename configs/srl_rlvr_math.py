"""RLVR that continues from SRL: the paper's best model (Table 1, SRL then RLVR).

  launch/run.sh configs/srl_math.py && launch/run.sh configs/srl_rlvr_math.py         8 x H100

Training starts from the best checkpoint of runs/srl_math; --config.init_from=WORKDIR (or a Hugging
Face folder) selects another. The prompt requests a think block before each step, the form that SRL
trained. Arguments: those of srl_math.py. Hyperparameters: Table 6.

The paper's figures, greedy accuracy in % (AMC23, AIME24, AIME25, Minerva Math): 57.5, 20.0, 10.0,
36.4; 50.0, 16.7, 13.3, 36.4 after SRL.
"""

from configs import rlvr_math


def get_config(arg=None):
  config = rlvr_math.get_config(arg)
  config.init_from = "runs/srl_math"
  config.prompt.style = "think"
  return config
