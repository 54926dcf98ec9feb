"""Safety rules as code: what an agent must not do, judged per step beside whether the step is right.

A rules file (`constitution`) names rules; each is judged by a predicate in a small language of its own (`language`), by
a trained classifier (`classifier`) or by a question to a judge; `verdicts` says which steps break which, `examples`
tries a file on the cases that it gives itself. Files that come with the project lie in `shipped/`. What follows from a
broken rule is told where things are chosen: training, search, serving and the gate.
"""
