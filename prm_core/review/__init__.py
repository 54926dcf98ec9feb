"""People judge steps: what is asked (queue.py), where (page.py, files.py, label_studio.py), and answers coming in.

importing.py alone writes human labels; session.py is the state of the page, pause.py a run that waits. What human
labels mean and how they are read is in `prm_core/labeling/human`.
"""
