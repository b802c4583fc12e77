"""Each optimisation against its off switch, in one process, with the exactness check beside the ratio: `make bench`."""
