"""What bench.py and bench_stream.py measure."""
