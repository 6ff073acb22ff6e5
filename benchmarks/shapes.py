"""Models without a name or a tokenizer. Plain Python, for every environment."""


def shape(d: int, f: int, l: int, n: int, k: int, v: int, h: int = 0, tied: bool = True) -> dict:
  """The config of a Qwen2: widths d and f, l layers, n query heads, k key/value heads, v words.

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


class NoText:
  """Used as a tokenizer where the text of responses does not matter."""

  def decode(self, token_ids, skip_special_tokens):
    return ""
