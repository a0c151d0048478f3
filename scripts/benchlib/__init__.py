"""What scripts/bench runs: subjects (what is mounted), workloads (what is timed), statistics, report."""
