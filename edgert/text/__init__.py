"""Text and tokens: tokenizer, chat templates, and where a stop string ends an answer."""
