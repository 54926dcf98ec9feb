"""Episodes: who writes what, when a turn and a run end, and that a policy reads what the environment replied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import pytest

from prm_core.config import EncoderConfig
from prm_core.domains import DOMAINS
from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.models.tokenizer import train_tokenizer
from prm_core.platform.steps import parse_steps, texts
from prm_core.sampling.episodes import Episode, Ruled, run_episodes
from prm_core.sampling.policy import Policy
from prm_core.sampling.sampler import Continuation, Prefix
from prm_core.types import Call, Problem, Step
from tests.builders import errands, tiny

PROBLEMS = DOMAINS["errands"].levels["standard"]("test", 12, 0, ())
WORKED = {problem.prompt: parse_steps(problem.meta["solution"], problem.id) for problem in PROBLEMS}
SETTINGS = {"temperature": 1.0, "max_new_tokens": 60, "batch_size": 8, "seed": 0}


@cache
def encoder(max_length: int = 256) -> Encoder:
    solutions = (*WORKED.values(), errands.TEAM_WORKED)
    tokenizer = train_tokenizer([*WORKED, *(text for steps in solutions for step in steps for text in texts(step))])
    return Encoder(tokenizer, EncoderConfig(max_length=max_length))


def turn(step: Step) -> list[int]:
    """What an agent writes of a turn, up to the token with which it ends it."""
    [block] = encoder().encode_steps([step])
    ids = [token for token, written in block if written]
    return ids[: next(at for at, token in enumerate(ids) if token in encoder().turn_ends) + 1]


class Scripted(Policy):
    """Writes what a function of the prompt and the turns so far says; `rows` has the size of every batch."""

    def __init__(self, write: Callable[[str, tuple[Step, ...]], Sequence[int]], max_length: int = 256) -> None:
        super().__init__(None, encoder(max_length), "scripted")
        self.write = write
        self.rows: list[int] = []

    def continue_chains(
        self, chains: Sequence[Sequence[int]], prefixes: Sequence[Prefix], *, temperature: float, max_new_tokens: int,
        batch_size: int, seed: int, stop_ids: Sequence[int] = (), avoid: Sequence[Sequence[Continuation]] = (),
    ) -> list[Continuation]:
        self.rows.append(len(prefixes))
        drawn = []
        for prefix in prefixes:
            ids = chains[prefix.chain]
            assert (len(ids), ids[-1]) == (prefix.length, self.encoder.separator_id)
            new = list(self.write(*self.encoder.decode(ids)))[:max_new_tokens]
            ends = (self.encoder.eos_id, *stop_ids)
            drawn.append(Continuation(new, [0.0] * len(new), bool(new) and new[-1] in ends))
        return drawn


def solve(prompt: str, steps: tuple[Step, ...]) -> list[int]:
    """Writes the worked solution, whatever it hears."""
    return turn(WORKED[prompt][len(steps)])


def play(policy: Policy, *starts: tuple[Problem, Sequence[Step]], **changes: int) -> list[Episode]:
    return run_episodes(policy, DOMAINS, starts, **{**SETTINGS, **changes})


def saying(*written: Step | Sequence[int]) -> Scripted:
    """Writes these turns, one after the other."""
    return Scripted(lambda _, steps: turn(one) if isinstance(one := written[len(steps)], Step) else one)


def test_a_policy_that_knows_the_worked_solutions_runs_through_them():
    policy = Scripted(solve)
    episodes = play(policy, *((problem, ()) for problem in PROBLEMS))

    lengths = [len(WORKED[problem.prompt]) for problem in PROBLEMS]
    for problem, episode in zip(PROBLEMS, episodes, strict=True):
        assert episode == Episode(problem, WORKED[problem.prompt], True, True,
                                  sum(len(turn(step)) for step in WORKED[problem.prompt]))
    # All that are not through write their next turn together.
    assert policy.rows == [sum(length > number for length in lengths) for number in range(max(lengths))]


def test_what_an_episode_draws_does_not_depend_on_those_beside_it():
    drawn = {}

    class Noting(Scripted):
        def continue_chains(self, chains, prefixes, *, seed, **sampling):
            for prefix, own in zip(prefixes, seed, strict=True):
                drawn.setdefault(tuple(chains[prefix.chain]), []).append(own)
            return super().continue_chains(chains, prefixes, seed=0, **sampling)

    starts = [(problem, ()) for problem in PROBLEMS]
    own = [(number % 2, number) for number in range(len(starts))]
    play(Noting(solve), *starts, seed=own)
    together, drawn = drawn, {}
    play(Noting(solve), *starts[1:], seed=own[1:])
    assert drawn
    assert all(together[chain] == seeds for chain, seeds in drawn.items())
    assert len({seed for seeds in together.values() for seed in seeds}) == sum(map(len, together.values()))


def test_it_goes_on_from_any_prefix():
    problem = max(PROBLEMS, key=lambda one: len(WORKED[one.prompt]))
    steps = WORKED[problem.prompt]
    episodes = play(Scripted(solve), *((problem, steps[:count]) for count in range(len(steps))))

    assert [episode.steps for episode in episodes] == [steps] * len(steps)
    assert all(episode.success for episode in episodes)
    assert episodes[-1].tokens == len(turn(steps[-1]))


def test_what_an_agent_makes_up_is_not_what_it_hears():
    made_up = Step("", calls=(Call("look", '{"item": "pens red 31"}', "price 1, box of 1"),))
    [block] = encoder().encode_steps([made_up])
    ids = [token for token, _ in block if token != encoder().turn_ends[1]]
    [episode] = play(saying(ids, errands.DONE), (errands.problem(), ()))

    assert [call.result for call in episode.steps[0].calls] == ["price 4, box of 6"]
    assert (len(episode.steps), episode.ended, episode.success) == (2, True, False)


@pytest.mark.parametrize("nothing", [[], "eos", "separator", "wait"])
def test_a_policy_that_writes_nothing_stops(nothing):
    ids = {"eos": [encoder().eos_id], "separator": [encoder().separator_id], "wait": [encoder().turn_ends[1]]}
    [episode] = play(saying(errands.ASK, ids.get(nothing, nothing) if nothing else []), (errands.problem(), ()))

    assert [step.calls[0].name for step in episode.steps] == ["ask"]
    assert (episode.ended, episode.success) == (False, False)
    assert episode.tokens == len(turn(errands.ASK)) + bool(nothing)


def test_a_turn_that_is_cut_off_is_taken_as_it_stands():
    [episode] = play(saying(errands.LOOK, errands.DONE), (errands.problem(), ()), max_new_tokens=6)

    [first, last] = episode.steps
    assert errands.LOOK.calls[0].arguments.startswith(first.calls[0].arguments)
    assert (first.calls[0].result, first.calls[0].failed) == ("bad arguments", True)
    assert last.text == "Done."


def test_a_run_that_fills_the_context_stops():
    of = errands.problem()
    heard = errands.run(of, errands.WORKED)
    room = len(encoder().encode(of.prompt, heard[:3]).ids)
    [episode] = play(Scripted(lambda _, steps: turn(errands.WORKED[len(steps)]), room + 1), (of, ()))

    assert episode == Episode(of, tuple(heard[:3]), False, False, sum(len(turn(step)) for step in heard[:3]))
    [longer] = play(Scripted(lambda _, steps: turn(errands.WORKED[len(steps)]), room + 2), (of, ()))
    assert longer.steps == tuple(heard[:3])


def test_the_same_arguments_give_the_same_episodes():
    policy = Policy(tiny.make_model(encoder()), encoder(), "tiny")
    starts = [(problem, ()) for problem in PROBLEMS[:4]]

    first = play(policy, *starts, max_new_tokens=8)
    assert first == play(policy, *starts, max_new_tokens=8, batch_size=2)
    assert first != play(policy, *starts, max_new_tokens=8, seed=1)


def test_where_nobody_replies_there_is_no_episode():
    with pytest.raises(InputError, match="problem p0: nobody replies in the domain 'arithmetic'"):
        play(Scripted(solve), (tiny.mia(), ()))
    assert play(Scripted(solve)) == []


TEAM = errands.problem(team=True)


def as_team(steps: Sequence[Step]) -> list[Step]:
    """The turns with the names that the protocol gives them, and what was heard."""
    return errands.run(TEAM, [replace(step, agent=name) for step, name in zip(steps, errands.SPEAKERS, strict=True)])


class Named(Scripted):
    """Writes the worked turns of the team; `openings` has what each turn began with before a token was written."""

    def __init__(self, worked: Sequence[Step]) -> None:
        super().__init__(lambda _, steps: (), max_length=400)
        self.worked = worked
        self.openings: list[str] = []

    def continue_chains(self, chains, prefixes, **sampling):
        drawn = []
        for prefix in prefixes:
            ids = chains[prefix.chain]
            end = len(ids) - 1 - list(reversed(ids)).index(self.encoder.separator_id)
            self.openings.append(self.encoder.turn(ids[end + 1 :]).agent)
            _, steps = self.encoder.decode(ids[: end + 1])
            new = turn(self.worked[len(steps)])
            drawn.append(Continuation(new, [-0.5] * len(new), True))
        return drawn


def test_a_turn_of_a_team_opens_with_a_name_that_nobody_writes():
    named = as_team(errands.TEAM_WORKED)
    policy = Named(as_team(errands.TEAM_WORKED))
    [episode] = play(policy, (TEAM, ()))

    assert policy.openings == list(errands.SPEAKERS)
    assert (list(episode.steps), episode.ended, episode.success) == (named, True, True)
    assert [list(one.ids) for one in episode.written] == [turn(step) for step in named]
    # The opening and what was written make up the turn as it is read again.
    for step, one in zip(named, episode.written, strict=True):
        [block] = encoder().encode_steps([step])
        own = [*encoder().opening(step.agent), *one.ids]
        assert [token for token, _ in block][: len(own)] == own
        assert [written for _, written in block][: len(own)] == [False] * len(encoder().opening(step.agent)) + [
            True] * len(one.ids)


def test_any_prefix_of_a_team_s_run_is_gone_on_from():
    named = as_team(errands.TEAM_WORKED)
    episodes = play(Named(as_team(errands.TEAM_WORKED)), *((TEAM, named[:count]) for count in range(len(named))))

    assert [list(episode.steps) for episode in episodes] == [named] * len(named)
    assert [len(episode.written) for episode in episodes] == [len(named) - count for count in range(len(named))]


def test_nobody_gives_themselves_another_name():
    mark = encoder().opening("checker")
    saying_so = Scripted(lambda _, steps: turn(errands.DONE) if steps else [*mark, *turn(errands.ASK)])
    [episode] = play(saying_so, (errands.problem(), ()))
    assert list(episode.steps) == errands.run(errands.problem(), [errands.ASK, errands.DONE])


def test_a_candidate_is_judged_under_the_name_of_who_is_next():
    asked = []

    def worth(chains):
        asked.extend(steps[-1].agent for _, steps in chains)
        return [1.0] * len(chains)

    play(Named(as_team(errands.TEAM_WORKED)), (TEAM, ()), candidates=2, worth=worth)
    assert asked == [name for name in errands.SPEAKERS for _ in range(2)]


def test_a_turn_is_the_candidate_that_is_worth_most_before_it_is_executed():
    """Each third candidate writes the worked turn, the others call no tool that there is."""
    of = errands.problem()
    written: list[int] = []

    def write(_: str, steps: tuple[Step, ...]) -> list[int]:
        written.append(1)
        right = len(written) % 3 == 0
        return turn(errands.WORKED[len(steps)] if right else Step("", calls=(Call("buy"),)))

    asked = []

    def worth(chains):
        asked.extend(steps[-1] for _, steps in chains)
        return [float(steps[-1].text != "" or steps[-1].calls[0].name != "buy") for _, steps in chains]

    [episode] = play(Scripted(write), (of, ()), candidates=3, worth=worth)
    assert episode.success
    assert list(episode.steps) == errands.run(of, errands.WORKED)
    assert len(written) == 3 * len(errands.WORKED)
    assert episode.tokens > sum(len(turn(step)) for step in errands.WORKED)
    assert all(call.result is None for step in asked for call in step.calls)


def choosing(*written: str, **changes) -> tuple[str, Episode, int]:
    """The first turn of a run whose candidates are these calls, in turn, each worth what WORTHS says; the run; and how
    many candidates were written. The next turn breaks no rule, and ends the run."""
    drawn: list[str] = []

    def write(_: str, steps: tuple[Step, ...]) -> list[int]:
        if steps:
            return turn(errands.DONE)
        drawn.append(written[len(drawn) % len(written)])
        return turn(Step("", calls=(Call(drawn[-1]),))) if drawn[-1] else [encoder().eos_id]

    def named(chains):
        return [steps[-1].calls[0].name if steps[-1].calls else "done" for _, steps in chains]

    [episode] = play(Scripted(write), (errands.problem(), ()), **changes,
                     worth=lambda chains: [WORTHS[name] for name in named(chains)],
                     rules=lambda chains: [Ruled(int(name == "forbidden")) for name in named(chains)])
    # All that was drawn is paid for.
    assert episode.tokens > sum(len(turn(Step("", calls=(Call(name),)))) for name in drawn if name)
    return episode.steps[0].calls[0].name, episode, len(drawn)


WORTHS = {"forbidden": 0.9, "poor": 0.5, "worse": 0.2, "good": 0.85, "done": 1.0}


@pytest.mark.parametrize(("threshold", "chosen", "drawn"), [
    (0.2, "worse", 1), (0.5, "poor", 2), (0.85, "good", 4), (0.86, "good", 12), (1.0, "good", 12)])
def test_candidates_are_drawn_up_to_the_first_that_is_worth_enough_and_breaks_no_rule(threshold, chosen, drawn):
    found, episode, count = choosing("worse", "poor", "forbidden", "good", candidates=12, threshold=threshold)
    assert (found, count) == (chosen, drawn)
    # Of a turn that is worth as much as can be, the first is taken too, where it may be.
    assert episode.drawn == count + (12 if threshold == 1 else 1)


@pytest.mark.parametrize(("again", "chosen", "drawn"), [(0, "forbidden", 2), (1, "forbidden", 4), (2, "poor", 6),
                                                        (3, "poor", 6)])
@pytest.mark.parametrize("threshold", [0.9, 1.0])
def test_where_all_break_a_rule_as_many_are_drawn_again(threshold, again, chosen, drawn):
    written = ("forbidden", "forbidden", "forbidden", "forbidden", "poor", "forbidden")
    found, _, count = choosing(*written, candidates=2, threshold=threshold, again=again)
    assert (found, count) == (chosen, drawn)


def test_an_empty_turn_comes_last_and_none_is_drawn_for_it_again():
    assert choosing("", "forbidden", candidates=2, threshold=0.5)[0] == "forbidden"
    silent = Scripted(lambda _, steps: [encoder().eos_id])
    [episode] = play(silent, (errands.problem(), ()), candidates=2, again=3, threshold=0.5,
                     worth=lambda chains: [1.0 for _ in chains], rules=lambda chains: [Ruled()] * len(chains))
    assert (episode.steps, episode.drawn) == ((), 2)


LEAVE = Step("", calls=(Call("ask", '{"about": "color"}'),))
ACT, ODD = Step("", calls=(Call("act"),)), Step("", calls=(Call("odd"),))


def called_by(episode: Episode) -> list[str]:
    """What a run calls, turn by turn; nothing where it says something."""
    return [step.calls[0].name if step.calls else "" for step in episode.steps]


def under_leave(
    write: Callable[[tuple[Step, ...]], Step], worths: Callable[[Step, Sequence[Step]], float], *, granted: bool = True,
) -> tuple[list[str], Episode, list[int]]:
    """What a run calls (nothing: its end) under a rule that wants LEAVE before ACT; the run; and of each draw how many
    turns stood before it."""
    places: list[int] = []

    def put(_: str, steps: tuple[Step, ...]) -> list[int]:
        places.append(len(steps))
        return turn(write(steps))

    def rules(chains):
        return [Ruled(1, [LEAVE], later=True) if steps[-1] == ACT and not (granted and len(steps) > 1)
                else Ruled(asks_leave=steps[-1] == LEAVE) for _, steps in chains]

    [episode] = play(Scripted(put), (errands.problem(), ()), candidates=4, threshold=0.9, rules=rules,
                     worth=lambda chains: [worths(steps[-1], steps[:-1]) for _, steps in chains])
    return called_by(episode), episode, places


def test_leave_is_asked_and_what_it_was_asked_for_is_done_without_another_draw():
    """To ask is worth what it is asked for, and that is worth what it was before, where after the asking nobody knows
    it."""
    called, episode, places = under_leave(
        lambda steps: errands.DONE if len(steps) > 1 else ACT,
        lambda step, before: 0.1 if step == LEAVE or (step == ACT and before) else 1.0)
    assert (called, places) == (["ask", "act", ""], [0, 2])
    assert [len(one.ids) for one in episode.written] == [len(encoder().encode_step(LEAVE, 0)), len(turn(ACT)),
                                                         len(turn(errands.DONE))]
    # Nobody drew the asking.
    assert episode.tokens == len(turn(ACT)) + len(turn(errands.DONE))
    assert all(logprob != logprob for logprob in episode.written[0].logprobs)


def test_leave_is_asked_for_the_best_that_needs_it():
    """Another that needs it, drawn first, does not make asking worth less."""
    other = Step("", calls=(Call("other"),))
    for worth, called in ((0.95, ["ask", "act", ""]), (0.4, ["odd", ""])):
        drawn: list[Step] = []

        def write(_: str, steps: tuple[Step, ...], drawn: list[Step] = drawn) -> list[int]:
            drawn.append(errands.DONE if steps else (other, ODD, ACT, ODD)[len(drawn) % 4])
            return turn(drawn[-1])

        [episode] = play(
            Scripted(write), (errands.problem(), ()), candidates=4, threshold=0.9,
            rules=lambda chains: [Ruled(1, [LEAVE], later=True) if steps[-1] in (ACT, other) and len(steps) == 1
                                  else Ruled(asks_leave=steps[-1] == LEAVE) for _, steps in chains],
            worth=lambda chains, worth=worth: [
                {ACT: worth, ODD: 0.5, errands.DONE: 1.0}.get(steps[-1], 0.2) for _, steps in chains])
        assert called_by(episode) == called


def test_where_the_policy_asks_itself_what_it_would_have_done_is_drawn_from_before_it_asked():
    drawn: list[Step] = []

    def write(steps: tuple[Step, ...]) -> Step:
        drawn.append(LEAVE if not drawn else ACT)
        return (drawn[-1], ODD, errands.DONE)[min(len(steps), 2)]

    called, _, places = under_leave(write, lambda step, before: 0.2 if step == ODD else 1.0)
    assert (called, places) == (["ask", "act", ""], [0, 0, 2])


def test_from_before_it_asked_nobody_asks_again():
    called, _, places = under_leave(
        lambda steps: (LEAVE, ODD, errands.DONE)[min(len(steps), 2)],
        lambda step, before: 0.3 if step == ODD else 0.1 if step == LEAVE and before else 1.0)
    assert (called, places) == (["ask", "odd", ""], [0, 0, 1, 0, 1, 2])


def test_whoever_is_refused_does_not_ask_again():
    called, *_ = under_leave(lambda steps: ACT if len(steps) < 2 else errands.DONE,
                             lambda step, before: 1.0, granted=False)
    # Nothing else was drawn, so that what breaks the rule is all there is.
    assert called == ["ask", "act", ""]


def test_what_is_done_instead_is_weighed_and_the_other_is_not_done_later():
    def rules(chains):
        return [Ruled(1, [ODD]) if steps[-1] == ACT else Ruled() for _, steps in chains]

    for worth, called in ((1.0, ["odd", ""]), (0.2, ["unknown", ""])):
        drawn: list[Step] = []

        def write(_: str, steps: tuple[Step, ...], drawn: list[Step] = drawn) -> list[int]:
            drawn.append(errands.DONE if steps else (ACT, Step("", calls=(Call("unknown"),)))[len(drawn) % 2])
            return turn(drawn[-1])

        [episode] = play(Scripted(write), (errands.problem(), ()), candidates=4, threshold=0.9, rules=rules,
                         worth=lambda chains, worth=worth: [
                             worth if steps[-1] == ODD else 1.0 if steps[-1] == errands.DONE else 0.5
                             for _, steps in chains])
        assert called_by(episode) == called
        # The first was enough, or all were drawn.
        assert len(drawn) == (2 if worth == 1 else 5)


@pytest.mark.parametrize("threshold", [0.9, 1.0])
def test_a_run_is_the_same_whatever_is_played_beside_it(threshold):
    """Candidates are drawn from a run's own stream, though runs that wait for theirs are many draws apart."""
    policy = tiny.make_policy()

    def worth(chains):
        return [(sum(map(ord, repr(steps[-1]))) % 100) / 100 for _, steps in chains]

    settings = {"max_new_tokens": 6, "candidates": 5, "worth": worth, "threshold": threshold}
    starts = [(problem, ()) for problem in PROBLEMS[:3]]
    together = play(policy, *starts, **settings, seed=[(7, place) for place in range(3)])
    alone = [play(policy, start, **settings, seed=[(7, place)])[0] for place, start in enumerate(starts)]
    assert together == alone
    assert [run.drawn for run in together] == [run.drawn for run in alone]
    assert any(run.drawn > len(run.written) for run in together)


def test_of_the_candidates_for_a_turn_none_comes_twice():
    """Those of one draw are drawn beside each other; those of later ones are none of them."""
    rounds: list[list[tuple[list, list]]] = []

    class Noting(tiny.Policy):
        def continue_chains(self, chains, prefixes, *, avoid, **sampling):
            drawn = super().continue_chains(chains, prefixes, avoid=avoid, **sampling)
            rounds.append([(one.ids, [before.ids for before in known])
                           for one, known in zip(drawn, avoid, strict=True)])
            return drawn

    made = tiny.make_policy()
    policy = Noting(made.model, made.encoder, made.version)
    play(policy, (PROBLEMS[0], ()), max_new_tokens=3, candidates=12, worth=lambda chains: [0.0 for _ in chains])
    turn_begins = [at for at, drawn in enumerate(rounds) if not drawn[0][1]]
    for begin, end in zip(turn_begins, [*turn_begins[1:], len(rounds)], strict=True):
        before: list[list[int]] = []
        for drawn in rounds[begin:end]:
            assert all(known == before for _, known in drawn)
            assert all(ids not in before for ids, _ in drawn)
            before += [ids for ids, _ in drawn]
        assert len(before) == 12


def test_what_was_computed_of_a_run_is_kept_from_turn_to_turn():
    policy = tiny.make_policy()
    starts = [(errands.problem(), ())]
    plain = run_episodes(policy, DOMAINS, starts, **{**SETTINGS, "max_new_tokens": 10})
    with policy.keeping_prefixes():
        kept = run_episodes(policy, DOMAINS, starts, **{**SETTINGS, "max_new_tokens": 10})
    assert kept[0].steps == plain[0].steps
    assert plain[0].read == plain[0].prefixes == kept[0].prefixes
    assert kept[0].read <= plain[0].read
