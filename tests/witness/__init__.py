"""The witness: honest changes never alarm, and what an attacker does is told."""
