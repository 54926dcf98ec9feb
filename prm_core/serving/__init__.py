"""A reward model in service: HTTP requests, score cache, analysis; its versions in MLflow's registry, and promotion;
its scores on MLflow's traces.

HTTP interfaces are in `http/`, how one version takes over from another in `swap/`. Scoring itself is in
`prm_core/scoring`.
"""
