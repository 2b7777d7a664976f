"""Latency, throughput and memory of teacher and hybrids, each point in a process of its own."""
