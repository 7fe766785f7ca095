"""The embedded model: data, no code. README.md is its card; `k2ref.load()` reads this directory."""
