"""The arguments of a model in Hugging Face's names. Plain Python, for every environment."""


def shape(d: int, f: int, l: int, n: int, k: int, v: int, h: int = 0, tied: bool = True) -> dict:
  """A Qwen2 of widths d and f, l layers, n query heads, k key/value heads, v words.

  h: width of a head, if not d / n. tied: the head has the embedding's weights.
  """
  return dict(
    hidden_size=d,
    intermediate_size=f,
    num_hidden_layers=l,
    num_attention_heads=n,
    num_key_value_heads=k,
    vocab_size=v,
    head_dim=h or d // n,
    tie_word_embeddings=tied,
  )
