"""Beam search one step at a time, with four tokens: 0 and 1 are ordinary, 2 and 3 end an answer."""

import math

import pytest
import torch

from generation import BeamParams, beam
from runtime.errors import UserError

ENDS = (2, 3)
V = 9  # tokens 4 ... are there to fill up the candidates


def logits_of(*beams: dict[int, float]) -> torch.Tensor:
    """One prompt; probabilities of some tokens per beam, the rest shared by the others (ends get next to none)."""
    rows = []
    for named in beams:
        named = dict.fromkeys(ENDS, 1e-12) | named
        rest = (1 - sum(named.values())) / (V - len(named))
        rows.append([math.log(named.get(token, rest)) for token in range(V)])
    return torch.tensor([rows])


def begin(params: BeamParams, context=(7, 8), length=None) -> beam.BeamState:
    return beam.start([list(context)], [length or len(context)], params)


def penalty(length: int, power: float = 1.0) -> float:
    return ((5 + length) / 6) ** power


def scores(state):
    return [math.exp(score) for score in state.scores[0].tolist()]


def test_first_step_goes_on_with_the_best_tokens_of_the_only_beam():
    params = BeamParams(num_beams=2)
    state = beam.beam_step(begin(params), logits_of({0: 0.5, 1: 0.3}), params, ENDS)
    assert state.tokens.tolist() == [[0, 1]]
    assert state.parents == ((0, 0),)
    assert scores(state) == pytest.approx([0.5, 0.3])
    assert state.history.tolist() == [[[0], [1]]]
    assert (state.finished, state.done, state.steps) == (((),), (False,), 1)  # nothing ended


def test_later_steps_rank_over_all_beams():
    params = BeamParams(num_beams=2)
    state = beam.beam_step(begin(params), logits_of({0: 0.5, 1: 0.3}), params, ENDS)
    state = beam.beam_step(state, logits_of({0: 0.4, 4: 0.3}, {5: 0.9}), params, ENDS)
    assert state.tokens.tolist() == [[5, 0]]  # 0.3 * 0.9 > 0.5 * 0.4 > 0.5 * 0.3
    assert state.parents == ((1, 0),)
    assert state.history.tolist() == [[[1, 5], [0, 0]]]


def test_an_end_token_finishes_a_beam_with_the_penalty_of_the_whole_sequence():
    params = BeamParams(num_beams=2, length_penalty=0.7)
    state = beam.beam_step(begin(params), logits_of({2: 0.5, 0: 0.3, 1: 0.1}), params, ENDS)
    assert state.tokens.tolist() == [[0, 1]]
    (entry,) = state.finished[0]
    assert (entry.end, entry.history.tolist()) == (2, [])
    assert entry.score == pytest.approx(math.log(0.5) / penalty(3, 0.7))
    assert state.done == (False,)


def test_the_walk_stops_at_the_first_further_candidate_that_does_not_end():
    params = BeamParams(num_beams=1)
    # best first: 0 goes on, 2 ends (before another that goes on: still counted)
    state = beam.beam_step(begin(params), logits_of({0: 0.5, 2: 0.3, 1: 0.1}), params, ENDS)
    assert [entry.end for entry in state.finished[0]] == [2]
    # best first: 0 goes on, 1 would go on too: the end token behind it is not looked at
    state = beam.beam_step(begin(params), logits_of({0: 0.5, 1: 0.3, 2: 0.1}), params, ENDS)
    assert state.finished == ((),)


def test_done_when_no_continuing_beam_can_become_better():
    params = BeamParams(num_beams=1, length_penalty=0.0)
    state = beam.beam_step(begin(params), logits_of({2: 0.5, 0: 0.3}), params, ENDS)
    assert state.done == (True,)
    later = beam.beam_step(state, logits_of({2: 0.9}), params, ENDS)
    assert later.finished == state.finished  # a prompt that is done takes no more
    # a strong penalty of length makes the longer beam promising again
    params = BeamParams(num_beams=1, length_penalty=9.0)
    state = begin(params)
    state = beam.beam_step(state, logits_of({0: 0.5, 2: 0.45}), params, ENDS)
    assert state.done == (False,)
    assert len(state.finished[0]) == 1


def test_finished_beams_are_sorted_new_ones_before_equals_and_cut():
    first, second, third = (beam.Finished(score, torch.zeros(0), None) for score in (-1.0, -2.0, -2.0))
    assert beam._insert((first, second), third, 2)[1] is third
    assert beam._insert((second,), first, 2) == (first, second)


def test_context_counts_as_what_it_is_said_to_count_as():
    params = BeamParams(num_beams=1)
    state = beam.beam_step(begin(params, length=32), logits_of({0: 0.5, 2: 0.3}), params, ENDS)
    assert state.finished[0][0].score == pytest.approx(math.log(0.3) / penalty(33))


def test_min_gen_length_forbids_end_tokens():
    params = BeamParams(num_beams=1, min_gen_length=1)
    state = beam.beam_step(begin(params), logits_of({2: 0.9}), params, ENDS)
    assert state.finished == ((),)
    state = beam.beam_step(state, logits_of({2: 0.9}), params, ENDS)
    assert len(state.finished[0]) == 1


@pytest.mark.parametrize("size, history, forbidden", [
    (1, [5, 6], {5, 6}),
    (2, [9, 5, 6, 5], {6}),  # 9 is the context's last token: 9 5, 5 6 and 6 5 have been generated
    (2, [9, 5, 9], {5}),
    (3, [8, 9, 5, 6, 7, 5, 6], {7}),
    (3, [8, 9, 5], set()),
])
def test_no_ngram_is_generated_twice(size, history, forbidden):
    logits = beam.forbid_repeats_(torch.zeros(1, 1, 12), torch.tensor([[history]]), size)
    assert {token for token in range(12) if logits[0, 0, token] == -65504.0} == forbidden


def test_ngrams_of_the_context_may_be_generated():
    params = BeamParams(num_beams=1, no_repeat_ngram_size=2)
    state = begin(params, context=(4, 5, 4))
    state = beam.beam_step(state, logits_of({5: 0.9}), params, ENDS)
    assert state.tokens.tolist() == [[5]]  # 4 5 stands in the context only
    state = beam.beam_step(state, logits_of({4: 0.9}), params, ENDS)
    state = beam.beam_step(state, logits_of({5: 0.9, 6: 0.05}), params, ENDS)
    assert state.tokens.tolist() == [[6]]  # 4 5 has been generated now: context's last token, then 5


def test_bans_follow_their_beam():
    params = BeamParams(num_beams=2, no_repeat_ngram_size=1)
    state = beam.beam_step(begin(params), logits_of({0: 0.5, 1: 0.3}), params, ENDS)
    state = beam.beam_step(state, logits_of({0: 0.8, 1: 0.15}, {0: 0.2, 1: 0.7}), params, ENDS)
    assert state.history.tolist() == [[[1, 0], [0, 1]]] or state.history.tolist() == [[[0, 1], [1, 0]]]


def test_results_add_the_continuing_beams_of_a_prompt_that_is_not_done():
    params = BeamParams(num_beams=2)
    state = beam.beam_step(begin(params), logits_of({0: 0.5, 2: 0.2, 1: 0.1}), params, ENDS)
    found = beam.results(state, 0, params)
    assert [ids for ids, _ in found] == [[0], [2]]
    assert [score for _, score in found] == pytest.approx([math.log(0.5) / penalty(3), math.log(0.2) / penalty(3)])


def test_select_keeps_prompts():
    params = BeamParams(num_beams=1)
    state = beam.start([[7, 8], [7, 8, 8]], [2, 3], params)
    logits = torch.cat((logits_of({0: 0.9}), logits_of({1: 0.9})))
    state = beam.select(beam.beam_step(state, logits, params, ENDS), [1])
    assert (state.tokens.tolist(), state.lengths, state.done) == ([[1]], (3,), (False,))


def test_stochastic_beams_are_drawn_by_the_softmax_of_their_scores():
    params = BeamParams(num_beams=1, stochastic=True)
    logits = logits_of({0: 0.6, 1: 0.3})
    noise = torch.empty(4000, V).exponential_(generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(V)
    for draw in noise:
        # the walk looks at the best of the drawn candidates first: count where the token is drawn at all
        counts[beam._candidates(logits.clone(), torch.zeros(1, 1), 1, draw[None])[2][0, 0]] += 1
    assert counts.div(4000)[:2].tolist() == pytest.approx([0.6, 0.3], abs=0.03)
    state = beam.beam_step(begin(params), logits, params, ENDS, noise[:1])
    assert state.tokens.shape == (1, 1)


def test_more_candidates_than_tokens_is_a_clear_error():
    params = BeamParams(num_beams=4)
    with pytest.raises(UserError, match="num_beams 4 needs a vocabulary of at least 12 tokens, the model has 9"):
        beam.beam_step(begin(params), logits_of({}), params, ENDS)


def test_beams_say_from_where_on_they_differ_from_their_parents():
    """So that only the places behind it are copied in the cache."""
    params = BeamParams(num_beams=2)
    state = beam.beam_step(begin(params), logits_of({0: 0.5, 1: 0.3}), params, ENDS)
    assert state.common == ((0, 0),)  # nothing had been generated
    state = beam.beam_step(state, logits_of({0: 0.8}, {1: 0.9}), params, ENDS)
    assert (state.parents, state.common) == (((0, 1),), ((1, 1),))  # all stay in their places
    state = beam.beam_step(state, logits_of({5: 0.5, 6: 0.4}, {}), params, ENDS)
    assert (state.parents, state.common) == (((0, 0),), ((2, 0),))  # 0 0 and 1 1 differ from the start
    state = beam.beam_step(state, logits_of({7: 0.5, 8: 0.4}, {}), params, ENDS)
    assert (state.parents, state.common) == (((0, 0),), ((3, 2),))  # 0 0 5 and 0 0 6 differ behind 0 0


SEQ2SEQ = BeamParams(num_beams=2, length_penalty=1.0, ranking="seq2seq")


def test_seq2seq_leaves_the_context_out_of_lengths_and_ngrams():
    params = BeamParams(num_beams=1, no_repeat_ngram_size=2, ranking="seq2seq")
    state = beam.beam_step(begin(params, context=(0, 1)), logits_of({0: 0.9}), params, ENDS)
    assert state.tokens.tolist() == [[0]]  # though "1 0" would follow as "0 1" did
    state = beam.beam_step(state, logits_of({1: 0.9}), params, ENDS)
    assert state.tokens.tolist() == [[1]]  # "0 1" stands in the context alone
    state = beam.beam_step(beam.start([[7]], [0], SEQ2SEQ), logits_of({2: 0.5, 0: 0.3, 1: 0.1}), SEQ2SEQ, ENDS)
    assert [entry.score for entry in state.finished[0]] == pytest.approx([math.log(0.5)])  # no token: counted as one


def test_seq2seq_does_not_share_out_the_probability_of_what_may_not_come():
    params = BeamParams(num_beams=1, min_gen_length=1, ranking="seq2seq")
    state = beam.beam_step(beam.start([[7]], [0], params), logits_of({2: 0.6, 0: 0.3}), params, ENDS)
    assert scores(state) == pytest.approx([0.3])
    params = BeamParams(num_beams=1, min_gen_length=1)
    state = beam.beam_step(begin(params), logits_of({2: 0.6, 0: 0.3}), params, ENDS)
    assert scores(state) == pytest.approx([0.75])


def test_seq2seq_compares_open_beams_at_the_length_before_the_step():
    params = BeamParams(num_beams=1, length_penalty=1.0, ranking="seq2seq")
    state = beam.beam_step(beam.start([[7]], [0], params), logits_of({0: 0.5}), params, ENDS)
    # the best candidate ends, with log(0.25) / 1, and is what open beams are compared by: log(0.25) / 1, not / 2
    ended = beam.beam_step(state, logits_of({2: 0.5, 0: 0.45}), params, ENDS)
    assert ended.done == (True,)
    with_next = BeamParams(num_beams=1, length_penalty=1.0, ranking="transformers")
    state = beam.beam_step(beam.start([[7]], [0], with_next), logits_of({0: 0.5}), with_next, ENDS)
    assert beam.beam_step(state, logits_of({2: 0.5, 0: 0.45}), with_next, ENDS).done == (False,)
