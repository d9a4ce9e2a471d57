"""Peers: workers that others might write for the same job, used for comparison."""
