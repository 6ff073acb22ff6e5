"""RLVR that continues from SFT on the numbered solutions (Table 1, SFT (outline) then RL(VR)).

  launch/run.sh configs/sft_outline.py && launch/run.sh configs/sft_rlvr_math.py      8 x H100

Training starts from the best checkpoint of runs/sft_outline; --config.init_from=WORKDIR (or a
Hugging Face folder) selects another. Arguments: those of srl_math.py. Hyperparameters: Table 6.

The paper's figures, greedy accuracy in % (AMC23, AIME24, AIME25, Minerva Math): 35.0, 3.3, 6.7,
30.1; 27.5, 3.3, 6.7, 31.6 after SFT.
"""

from configs import rlvr_math


def get_config(arg=None):
  config = rlvr_math.get_config(arg)
  config.init_from = "runs/sft_outline"
  return config
