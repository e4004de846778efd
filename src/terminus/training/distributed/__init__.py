"""Processes that train one model together: their group, sharded weights, files of shards."""
