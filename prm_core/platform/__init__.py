"""What every room stands on: files of our types, workspaces, MLflow runs, the environment, progress, worker processes.

Nothing here knows what a label, a model or a score is. Which problems a workspace holds is in `prm_core/problems`,
models in MLflow's registry are in `prm_core/serving`.
"""
