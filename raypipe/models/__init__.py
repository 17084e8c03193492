"""Embedder, scorers and packed language model: torch, transformers, vLLM. No Ray, so that they run on a bare GPU machine."""
