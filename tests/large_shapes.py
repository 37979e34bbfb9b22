"""Configurations of large models, for tests that estimate from them and load nothing."""

THIRTEEN = {  # llm-jp-3-13b; a plan reads only this file of its folder
    "model_type": "llama",
    "num_hidden_layers": 40,
    "hidden_size": 5120,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "intermediate_size": 13824,
    "vocab_size": 99487,
    "tie_word_embeddings": False,
}
