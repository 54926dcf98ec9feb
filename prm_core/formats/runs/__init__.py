"""Records of agents' runs as their frameworks and tracing systems keep them, a module each.

ATIF, MLflow's traces and plain chat messages are beside this package; what they share is there too.
"""
