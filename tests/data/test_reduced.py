"""Which frames are left."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videorl.data.reduced import RULES


@pytest.mark.parametrize("rule, places", [("first", [0, 1]), ("last", [6, 7]), ("middle", [3, 4]), ("uniform", [2, 6])])
def test_two_of_eight(rule, places):
    assert list(RULES[rule](8, 2)) == places


@settings(derandomize=True, max_examples=200, deadline=None)
@given(rule=st.sampled_from(sorted(RULES)), keep=st.integers(1, 40), more=st.integers(0, 60))
def test_places_increase_and_are_there(rule, keep, more):
    places = list(RULES[rule](keep + more, keep))
    assert len(places) == keep and places == sorted(set(places))
    assert places[0] >= 0 and places[-1] < keep + more
