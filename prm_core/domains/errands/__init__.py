"""Errands in a small shop: an agent with tools, a user who answers questions, and an exact end.

What is wanted is in `tasks`, the tools in `tools`, what they do in `world`, what an agent knows by then in `seen`,
worked solutions in `solutions`, drawing problems in `problems`; who does what where several agents work on an errand in
`team`. The domain `errands-rules` has the same errands under rules, with short cuts that they forbid and that would
succeed. `judge` and `conduct` are the oracle's: nothing here imports them.
"""

from collections.abc import Mapping
from functools import partial

from prm_core.domains.base import DOMAINS, Domain, Environment
from prm_core.domains.errands.problems import LEVELS, RULED_LEVELS, Level, make_problems, shifts
from prm_core.domains.errands.tasks import NAME, RULED, answer_classes, read_answer
from prm_core.domains.errands.tools import RULED_TOOLS, TOOLS, Tools, definitions
from prm_core.domains.errands.world import reply, speaker, succeeded


def _domain(levels: Mapping[str, Level], tools: Tools) -> Domain:
    return Domain(
        {name: partial(make_problems, levels=(level,)) for name, level in levels.items()},
        {name: partial(make_problems, levels=shifts(level)) for name, level in levels.items()},
        read_answer, str.__eq__, answer_classes, Environment(definitions(tools), reply, succeeded, speaker),
    )


DOMAINS.register(NAME)(_domain(LEVELS, TOOLS))
DOMAINS.register(RULED)(_domain(RULED_LEVELS, RULED_TOOLS))
