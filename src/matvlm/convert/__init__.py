"""Checkpoints of the paper's release and of TinyLLaVA Factory to our models and back, tensor by tensor.

A package of its own, beside `models`, so that a change here leaves the code hash of the pipeline's steps alone.
"""
