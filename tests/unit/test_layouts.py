"""Which layers a layout replaces: the paper's lists, the rule for other depths, and what is refused."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from matvlm.layouts import LayoutError, achieved_ratio, canonical, replaced_count, resolve

depths = st.integers(1, 96)
hundredths = st.integers(1, 10_000)
"""Ratios in hundredths of a per cent."""
placements = st.sampled_from(["even", "front", "middle", "end"])


def count_of(hundredth: int, depth: int) -> int:
    """floor(r L + 0.5), in whole numbers."""
    exact = Fraction(hundredth, 10_000) * depth + Fraction(1, 2)
    return exact.numerator // exact.denominator


@pytest.mark.parametrize(
    ("layout", "depth", "layers"),
    [
        ("even-12.5", 32, [0, 8, 16, 24]),
        ("even-25", 32, [0, 4, 8, 12, 16, 20, 24, 28]),
        ("even-50", 32, list(range(0, 32, 2))),
        ("front-25", 32, list(range(8))),
        ("middle-25", 32, list(range(12, 20))),
        ("end-25", 32, list(range(24, 32))),
        ("release-12.5", 32, [0, 6, 12, 18]),
        ("even-25", 16, [0, 4, 8, 12]),
        ("even-12.5", 30, [0, 7, 15, 22]),
        ("even-100", 3, [0, 1, 2]),
        ("middle-25", 30, list(range(11, 19))),
        ("middle-50", 3, [0, 1]),
        ("4,0,8", 9, [0, 4, 8]),
        (" even-25 ", 4, [0]),
    ],
)
def test_layers(layout, depth, layers):
    assert resolve(layout, depth) == layers


@pytest.mark.parametrize(("ratio", "count"), [(12.5, 4), (25, 8), (50, 15)])
def test_counts_at_thirty_layers(ratio, count):
    assert replaced_count(ratio, 30) == count
    assert achieved_ratio(f"even-{ratio:g}", 30) == pytest.approx(100 * count / 30)


@given(placements, hundredths, depths)
@example("even", 2900, 50)  # 14.5 layers, which a careless formula takes for less
@example("even", 5800, 25)
def test_a_ratio_gives_that_many_layers_or_is_refused(placement, hundredth, depth):
    layout = f"{placement}-{hundredth / 100:.2f}"
    count = count_of(hundredth, depth)
    if count == 0:
        with pytest.raises(LayoutError, match="replaces no layer"):
            resolve(layout, depth)
        return
    layers = resolve(layout, depth)
    assert len(layers) == count
    assert layers == sorted(set(layers))
    assert 0 <= layers[0] <= layers[-1] < depth
    assert achieved_ratio(layout, depth) == pytest.approx(100 * count / depth)


@given(hundredths, depths)
def test_even_layers_are_spread_evenly_from_the_first(hundredth, depth):
    count = count_of(hundredth, depth)
    if count == 0:
        return
    layers = resolve(f"even-{hundredth / 100:.2f}", depth)
    assert layers == [(i * depth) // count for i in range(count)]
    gaps = {b - a for a, b in zip(layers, [*layers[1:], depth], strict=True)}
    assert max(gaps) - min(gaps) <= 1


@given(hundredths, depths)
def test_blocks_are_whole_and_where_they_should_be(hundredth, depth):
    count = count_of(hundredth, depth)
    if count == 0:
        return
    front, middle, end = (resolve(f"{word}-{hundredth / 100:.2f}", depth) for word in ("front", "middle", "end"))
    assert front == list(range(count))
    assert end == list(range(depth - count, depth))
    assert middle == list(range(middle[0], middle[0] + count))
    before, after = middle[0], depth - 1 - middle[-1]
    assert after - before in (0, 1)


@given(st.sets(st.integers(0, 40), min_size=1).flatmap(lambda s: st.permutations(sorted(s))))
def test_explicit_layers(layers):
    layout = ",".join(map(str, layers))
    assert resolve(layout, 41) == sorted(layers)
    assert resolve(canonical(layout), 41) == sorted(layers)
    depth = max(layers)
    if depth:
        with pytest.raises(LayoutError, match=f"layer {depth} is out of range; allowed: 0 to {depth - 1}"):
            resolve(layout, depth)


@given(placements, hundredths, st.integers(0, 2))
def test_one_spelling(placement, hundredth, zeros):
    plain = canonical(f"{placement}-{hundredth / 100:.2f}")
    assert canonical(f"{placement}-{'0' * zeros}{hundredth / 100:.2f}{'0' * zeros}") == plain
    assert canonical(plain) == plain
    assert plain == f"{placement}-{hundredth / 100:g}"  # as a ratio of the ablation is written
    assert canonical("release-12.5") == "release-12.5"


@pytest.mark.parametrize(
    ("layout", "depth", "words"),
    [
        ("odd-25", 32, "unknown layout 'odd-25'; allowed: even-<per cent>"),
        ("even", 32, "unknown layout"),
        ("even-", 32, "unknown layout"),
        ("even--25", 32, "unknown layout"),
        ("even-25%", 32, "unknown layout"),
        ("even-nan", 32, "unknown layout"),
        ("even-1e1", 32, "unknown layout"),
        ("", 32, "unknown layout ''"),
        ("0,", 32, "unknown layout"),
        ("0, 4", 32, "unknown layout"),
        ("-1", 32, "unknown layout"),
        ("even-0", 32, "not in the range above 0 up to 100"),
        ("end-100.5", 32, "not in the range above 0 up to 100"),
        ("even-1", 32, "replaces no layer"),
        ("release-12.5", 16, "is for 32 layers; the model has 16"),
        ("release-25", 32, "unknown layout"),
        ("0,16", 16, "layer 16 is out of range; allowed: 0 to 15"),
        ("3,1,3", 16, "names a layer twice"),
    ],
)
def test_what_is_refused(layout, depth, words):
    with pytest.raises(LayoutError) as caught:
        resolve(layout, depth)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ratio", [float("nan"), float("inf"), -1, 0, 100.01])
def test_ratios_that_are_refused(ratio):
    with pytest.raises(LayoutError, match="not in the range"):
        replaced_count(ratio, 32)
