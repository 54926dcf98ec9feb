"""May these labels pass: expectations on rows and figures, drift from the last run, data docs.

Great Expectations is called from here only; the stage that reads and writes the files is `stages/validate.py`.
"""
