"""The oracle of the decode loop: one row, no cache, no batch, no tensors of beams; a full forward pass for every token.

`next_logits(ids, positions)` gives the float32 logits (v) behind ids.
"""

import torch

from generation import sampling

FORBIDDEN = -65504.0


def model_logits(model, context_length: int, unidirectional: bool = False):
    """next_logits of a real model, for rows whose context has `context_length` ids."""
    def next_logits(ids, positions):
        s = len(ids)
        blocked = torch.ones(s, s).triu(1).bool()
        if not unidirectional:
            blocked[:, :context_length - 1] = False
        return model.logits(torch.tensor([ids]), torch.tensor([positions]), blocked[None])[0, -1]
    return next_logits


def fake_logits(model):
    """next_logits of a fake model."""
    return lambda ids, positions: model._logits(torch.tensor([ids, positions]).T)


def positions_of(context, generated, shared):
    answer = range(len(context) - 1, len(context) + len(generated))
    return [*range(len(context) - 1), *(answer if shared is None else [shared] * len(answer))]


def sample_slowly(next_logits, context, params, ends, limit, shared, seeds):
    generated = []
    keys = sampling.keys_of(seeds, limit)
    while len(generated) < limit and not (generated and generated[-1] in ends):
        logits = next_logits(context + generated, positions_of(context, generated, shared)).clone()
        if len(generated) < params.min_gen_length:
            logits[list(ends)] = FORBIDDEN
        token = sampling.sample(logits[None], params, keys[len(generated)][None])
        generated.append(int(token))
    return [(generated, None)]


def search_beams_slowly(next_logits, context, params, ends, limit, shared, counted):
    k, n = params.num_beams, params.no_repeat_ngram_size

    def penalised(score, generated):
        return score / ((5 + counted + len(generated)) / 6) ** params.length_penalty

    def insert(score, generated):
        place = 0
        while place < len(finished) and finished[place][0] > penalised(score, generated):
            place += 1
        finished.insert(place, (penalised(score, generated), generated))
        del finished[k:]

    beams, finished, done = [(0.0, [], [])], [], False
    for step in range(limit):
        candidates = []
        for number, (score, generated, bans) in enumerate(beams):
            logits = next_logits(context + generated, positions_of(context, generated, shared)).clone()
            if step < params.min_gen_length:
                logits[list(ends)] = FORBIDDEN
            prefix = (context + generated)[len(context + generated) - (n - 1):] if n else None
            for banned_prefix, token in bans:
                if banned_prefix == prefix:
                    logits[token] = FORBIDDEN
            best = (logits.log_softmax(-1) + score).tolist()
            candidates += [(value, number, token) for token, value in enumerate(best)]
        candidates.sort(key=lambda candidate: -candidate[0])
        following = []
        for score, number, token in candidates[:(len(ends) + 1) * k]:
            _, generated, bans = beams[number]
            if token in ends:
                insert(score, generated + [token])
            elif len(following) == k:
                break
            else:
                prefix = (context + generated)[len(context + generated) - (n - 1):] if n else None
                following.append((score, generated + [token], bans + [(prefix, token)] if n else bans))
        beams = following
        done = len(finished) == k and finished[-1][0] >= penalised(beams[0][0], beams[0][1])
        if done:
            break
    if not done:
        for score, generated, _ in beams:
            insert(score, generated)
    return [(generated, score) for score, generated in finished]
