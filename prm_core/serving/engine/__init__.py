"""The engine of a server: requests of many clients become passes of one model. `requests` is what waits, `engine` the
thread that works it off. What a pass computes is in `scoring/incremental/`; HTTP is not here."""
