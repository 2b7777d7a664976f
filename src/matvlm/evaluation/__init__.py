"""Benchmarks through lmms-eval: `python -m matvlm.evaluation.run`."""
