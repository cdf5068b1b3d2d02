"""PPO and its kin on vector rewards."""
