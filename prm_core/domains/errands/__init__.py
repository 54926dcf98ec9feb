"""Errands in a small shop: an agent with tools, a user who answers questions, and an exact end.

What is wanted is in `tasks`, the tools in `tools`, what they do in `world`, what an agent knows by then in `seen`,
worked solutions in `solutions`, drawing problems in `problems`; who does what where several agents work on an errand in
`team`. `judge` is the oracle's: nothing here imports it.
"""

from functools import partial

from prm_core.domains.base import DOMAINS, Domain, Environment
from prm_core.domains.errands.problems import LEVELS, make_problems, shifts
from prm_core.domains.errands.tasks import NAME, answer_classes, read_answer
from prm_core.domains.errands.tools import definitions
from prm_core.domains.errands.world import reply, speaker, succeeded

DOMAINS.register(NAME)(Domain(
    {name: partial(make_problems, levels=(level,)) for name, level in LEVELS.items()},
    {name: partial(make_problems, levels=shifts(level)) for name, level in LEVELS.items()},
    read_answer, str.__eq__, answer_classes, Environment(definitions(), reply, succeeded, speaker),
))
