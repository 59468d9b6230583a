"""Multi-Objective Online DPO: one policy, every trade-off, chosen by a weight vector."""
