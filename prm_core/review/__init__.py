"""Human review on a local web page: the state of it (session.py), the page (page.py), and how it goes together with
runs in the same workspace (pause.py).
"""
