"""The teacher's answers on disk: logits (all, or the top k with the tail's mass and draws from it), hidden states
at the layers that cells compare, and vision features, computed once and shared by all cells.

A cache is a folder of safetensors shards and a `manifest.json` with their hashes. In a shard the real
positions of its conversations stand one after another, without padding:
``states`` (positions, points, d), absent where no point is kept, ``vision`` (conversations, image tokens, vision
width), and ``logits`` (positions, v) or ``top_values``, ``top_indices`` (positions, k), ``tail`` (positions,) and
``drawn_values``, ``drawn_indices`` (positions, tail_draws).
"""
