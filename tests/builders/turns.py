"""Any turn of an agent, for properties."""

from __future__ import annotations

from hypothesis import strategies as st

from prm_core.turns import is_empty
from prm_core.types import Call, Message, Step

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
ANY = st.one_of(st.just(""), TEXTS)
# What agents write for arguments: an object, spelt in any way, or no JSON at all.
ARGUMENTS = st.one_of(st.sampled_from(["{}", '{"q": "x"}', '{"q":"x"}', "[1]", "{"]), TEXTS)


@st.composite
def calls(draw: st.DrawFn, *, ids: st.SearchStrategy[str]) -> Call:
    result = draw(st.none() | ANY)
    return Call(draw(TEXTS), draw(ARGUMENTS), result, result is not None and draw(st.booleans()), draw(ids))


def turns(*, roles: tuple[str, ...] = ("user", "system", "agent")) -> st.SearchStrategy[Step]:
    """Steps that hold something, each part of them there or not; ids of calls are often the same, or none."""
    messages = st.builds(Message, st.sampled_from(roles), TEXTS, ANY)
    several = st.lists(calls(ids=st.sampled_from(["", "a", "b"])), max_size=3).map(tuple)
    return st.builds(Step, ANY, ANY, ANY, ANY, several, st.lists(messages, max_size=2).map(tuple)).filter(
        lambda step: not is_empty(step))
