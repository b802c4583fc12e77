"""The built-in reward terms: pure functions `term(response, row, **params) -> RewardResult`.

`response` is the text the policy wrote, `row` the canonical data row. A response that cannot be read is worth the
term's worst value and carries the parser's `Failure`. A row whose gold answer cannot be read is an error: scoring it
would be silently wrong for every response. `videorl.rewards.registry.TERMS` is the table of them all.
"""
