"""The order of the data: the same for all cells, every row once an epoch, block after block where asked for."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from matvlm.training.order import Order, epoch_order

SIZES = st.integers(1, 60)
SEEDS = st.integers(0, 2**32 - 1)
BLOCKS = st.none() | st.integers(1, 70)


@given(SIZES, st.integers(1, 20), SEEDS, BLOCKS)
def test_every_epoch_sees_every_row_once(size, batch, seed, block):
    order = Order(np.arange(100, 100 + size), batch, seed, block)
    seen = np.concatenate([order(step) for step in range(-(-3 * size // batch))])
    for epoch in range(3):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == [*range(100, 100 + size)]


@given(SIZES, st.integers(1, 20), SEEDS, BLOCKS, st.permutations(range(6)))
def test_the_order_is_a_function_of_seed_and_step(size, batch, seed, block, steps):
    """Whatever was asked for before, and by whom."""
    asked = Order(np.arange(size), batch, seed, block)
    for step in steps:
        assert np.array_equal(asked(step), Order(np.arange(size), batch, seed, block)(step))


@given(SIZES, SEEDS, st.integers(0, 5), st.integers(1, 70))
def test_a_block_is_left_for_good(size, seed, epoch, block):
    shards = [shard for shard, _ in groupby(epoch_order(size, seed, epoch, block) // block)]
    assert sorted(shards) == [*range(-(-size // block))]


def test_blocks_and_their_rows_are_shuffled_anew_each_epoch():
    one, other = (epoch_order(1000, 0, epoch, 100) for epoch in (0, 1))
    assert [*one[::100] // 100] != [*other[::100] // 100]
    inside = [[row % 100 for row in order if row < 100] for order in (one, other)]
    assert inside[0] != inside[1]
    assert inside[0] != sorted(inside[0])


def test_without_blocks_the_order_is_one_permutation():
    assert np.array_equal(epoch_order(50, 3, 2), np.random.default_rng([3, 2]).permutation(50))
