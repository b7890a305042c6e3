"""One file a command: what `ssl-bench NAME` and `ssl_bench.NAME` do."""
