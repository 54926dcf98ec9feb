"""A reward model probed before it may reward a policy: edited chains, suffixes searched by gradient, and a policy that
is paid by its scores alone. What promotion demands of the result is in `bounds.py`."""
