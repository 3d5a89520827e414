"""Instructions of one processor family that no plain TIR expression stands for."""
