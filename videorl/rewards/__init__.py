"""Rewards: `videorl.rewards.load("multiple_choice")(response=text, gold="B", choices=["red", "green"]).value`."""


def load(target: str, /, **params):
    """A reward term by name or import string, its parameters fixed; see `videorl.rewards.registry.load`."""
    from videorl.rewards import registry

    return registry.load(target, **params)
