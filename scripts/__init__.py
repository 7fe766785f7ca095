"""The programs around k2ref. What a user runs is here; what a maintainer runs has a room.

    bench bench_stream compare_traces compare_transformers expert_report make_checkpoint

    tiny/          how the embedded model was taught; its lessons are in tiny/lessons/
    checkpoints/   small checkpoints for the tests, and the programs they are compared with
    benchmarks/    what bench.py and bench_stream.py measure
    figures/       the pictures of the documentation
    docs/          the parts of the documentation that are made by a program
    checks/        other systems, other compilers, damaged files

A room's program runs from the root of the repository, as `python -m scripts.tiny.train`.
"""
