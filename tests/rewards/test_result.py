import pytest

from videorl.rewards.result import RewardResult


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_results_are_finite(value):
    with pytest.raises(ValueError, match=r"value is .*finite"):
        RewardResult(value)
    with pytest.raises(ValueError, match=r"speed is .*finite"):
        RewardResult(0.0, {"speed": value})
