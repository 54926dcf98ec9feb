"""Problems from outside (a user's file, GSM8K): no generator and no oracle, answers compared by value."""

from __future__ import annotations

from prm_core.domains.base import DOMAINS, Domain
from prm_core.maths.answers import answer_classes, read_stated_answer, same_value

NAME = "general"

DOMAINS.register(NAME)(Domain({}, {}, read_stated_answer, same_value, answer_classes))
