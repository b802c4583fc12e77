"""Terms that ask a service or another model; each implements `videorl.rewards.result.Scorer`."""
