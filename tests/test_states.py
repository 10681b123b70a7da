"States as hexadecimal digits and as integers: there and back, and what is not one."
import numpy as np, pytest
from hypothesis import given, strategies as st

from fairness_repair.core import InputError
from fairness_repair.states import (SearchSpace, all_states, neighbours, random_states, state_from_hex, state_to_hex, states_from_ints,
                                    states_to_ints)

masks = st.lists(st.booleans(), min_size=1, max_size=200).map(lambda bits: np.array(bits, bool))


@given(masks)
def test_hexadecimal_there_and_back(mask):
    digits = state_to_hex(mask)
    assert len(digits) == 2*-(-len(mask)//8) and (state_from_hex(digits, len(mask)) == mask).all()


@given(digits=st.text(max_size=12) | st.text("0123456789abcdefABCDEF", max_size=12), n=st.integers(-3, 60))
def test_digits_are_a_state_or_one_sentence(digits, n):
    try: mask = state_from_hex(digits, n)
    except InputError as e: assert "state" in str(e) or n < 0
    else: assert mask.shape == (n,) and state_to_hex(mask) == digits.lower()


@given(masks.filter(lambda mask: len(mask) <= 62))
def test_integers_there_and_back(mask):
    assert (states_from_ints(states_to_ints(mask), len(mask)) == mask).all()


def test_integers_end_at_62_units():
    "The 64th bit is the sign: a result would be silently wrong."
    for wrong in (lambda: states_to_ints(np.ones(63, bool)), lambda: states_from_ints(1, 63)):
        with pytest.raises(InputError, match="at most 62 units"): wrong()


@given(n=st.integers(-2, 30), low=st.integers(-3, 35), high=st.integers(-3, 35), size=st.integers(0, 5), seed=st.integers(0, 99))
def test_spaces_hold_what_is_drawn_from_them(n, low, high, size, seed):
    try: space = SearchSpace(n, low, high)
    except InputError: return
    drawn = random_states(space, size, rng=seed)
    assert all(state in space for state in drawn)
    if low < high: assert all(state in space for state in neighbours(space, drawn, rng=seed))
    if n <= 10: assert all(state in space for state in all_states(space)[1:])


@pytest.mark.parametrize("values", [(2.5, 0, 1), (4, .5, 2), (4, float("nan"), 2), ("4", 0, 2), (4, 0, None), (True, 0, 1)])
def test_bounds_are_whole_numbers(values):
    with pytest.raises(InputError, match="needs a whole number"): SearchSpace(*values)
