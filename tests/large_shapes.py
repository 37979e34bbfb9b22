"""Configurations of large models, for tests that reckon with them and load nothing."""

THIRTEEN = {  # llm-jp-3-13b, of whose folder a plan reads this file alone
    "model_type": "llama",
    "num_hidden_layers": 40,
    "hidden_size": 5120,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "intermediate_size": 13824,
    "vocab_size": 99487,
    "tie_word_embeddings": False,
}
