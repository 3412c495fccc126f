"""The loop, optimisers, evaluation and metrics."""
