"""Language models: architecture, weights, tokenizer, adapters and conditioners."""
