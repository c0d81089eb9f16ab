"""The token weights in other engines' trainers (docs/engines.md). Nothing here imports an engine."""
