"""The evaluation's report: one HTML page with its charts and search trees. It shows figures and measures none."""
