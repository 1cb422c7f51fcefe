"""Answers of two versions -> whether the new one is worse. A sequential test that may be looked at after every answer.

Each answer is bad or not: an error, or slower than what was slow for the old version. With `p` the part of bad answers,
the claim to be refuted is `p_new <= p_old + tolerated`. The evidence against it is a ratio: how likely the answers of
both versions are under a mixture of all their possible rates, to how likely they are under those rates within the claim
that suit them best. For the true rates this ratio is at most a nonnegative martingale that begins at 1, so while the
claim is true it ever reaches `1 / alpha` with a probability of at most `alpha` (Ville's inequality): looking at it each
second costs nothing. It does not matter how requests are shared out, nor that this changes, as long as they are alike.

Sources: H. Robbins, Statistical methods related to the law of the iterated logarithm, Ann. Math. Stat. 41 (1970), for
the mixture; L. Wasserman, A. Ramdas, S. Balakrishnan, Universal inference, PNAS 117 (2020), for the ratio to the best
rates within the claim; R. Turner, A. Ly, P. Grunwald, Generic E-variables for exact sequential k-sample tests that
allow for optional stopping, J. Stat. Plan. Inference 230 (2024), for two streams of yes and no.
"""

from __future__ import annotations

import math
from dataclasses import replace

from skyserve.model.evidence import BOUNDS_S, LoadReport, VersionAnswers
from skyserve.model.rollout import Gate, Rollout, Tally

OLD_BETA, NEW_BETA = (0.5, 20.0), (0.5, 1.5)
"""Which rates the mixtures weigh most: old versions seldom answer badly, bad new ones often. A choice that has to do
with how soon a bad version is found, never with how often a good one is taken for bad."""
SLOW_SHARE = 0.05
"""An answer is slow when it takes longer than all but this part of the old version's answers did."""
LEARN_FROM = 100
"""Answers of the old version from which it is learnt what is slow."""
WARM_UP = 20
"""The first answers of a new version are slow by nature: so many of them say nothing of its speed."""
DOUBT = math.log(10.0)
"""Evidence from which on nothing is promoted, though it does not condemn yet."""
_HALVINGS = 60


def evidence(old: tuple[int, int], new: tuple[int, int], tolerated: float) -> float:
    """Logarithm of the evidence that the new version is worse by more than is tolerated; pairs of answers, and bad ones
    among them."""
    if not old[0] or not new[0] or new[1] / new[0] <= old[1] / old[0] + tolerated:
        return -math.inf
    return _mixture(old, OLD_BETA) + _mixture(new, NEW_BETA) - _best_within(old, new, tolerated)


def _mixture(seen: tuple[int, int], beta: tuple[float, float]) -> float:
    answers, bad = seen
    return _log_beta(beta[0] + bad, beta[1] + answers - bad) - _log_beta(*beta)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _best_within(old: tuple[int, int], new: tuple[int, int], tolerated: float) -> float:
    """Log-likelihood of the rates that suit best among those where the new one is worse by just what is tolerated. It
    is concave along them, so its slope tells on which side the best lies."""
    low, high = 0.0, 1.0 - tolerated
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rising = _slope(old, middle) + _slope(new, middle + tolerated) > 0
        low, high = (middle, high) if rising else (low, middle)
    return _likelihood(old, low) + _likelihood(new, low + tolerated)


def _slope(seen: tuple[int, int], rate: float) -> float:
    answers, bad = seen
    return (bad / rate if bad else 0.0) - ((answers - bad) / (1.0 - rate) if bad < answers else 0.0)


def _likelihood(seen: tuple[int, int], rate: float) -> float:
    answers, bad = seen
    good = answers - bad
    return (bad * math.log(rate) if bad else 0.0) + (good * math.log1p(-rate) if good else 0.0)


# ---- what is counted


def count(gate: Gate, load: LoadReport | None, old: int, new: int, *, history: int = 0) -> Gate:
    """The gate with what the door has counted since it was last looked at. A door that was begun anew counts from zero,
    and all of that is new. At the first look nothing is, but where the two versions will not serve side by side, up to
    `history` of the old one's earlier answers stand for those that it will not give."""
    if load is None:
        return gate
    now = {one.version: one for one in load.versions if one.version in (old, new)}
    seen = tuple(now[version] for version in sorted(now))
    if not gate.boot:
        return _told_slow(replace(gate, boot=load.boot, seen=seen, old=_earlier(now.get(old), history)), now.get(old))
    before = {one.version: one for one in gate.seen} if gate.boot == load.boot else {}
    timed_from = gate.slow_from if gate.new.answers >= WARM_UP else None
    counted = replace(
        gate,
        boot=load.boot,
        seen=seen,
        old=_added(gate.old, before.get(old), now.get(old), gate.slow_from),
        new=_added(gate.new, before.get(new), now.get(new), timed_from),
    )
    return _told_slow(counted, now.get(old))


def _earlier(old: VersionAnswers | None, most: int) -> Tally:
    if old is None or not old.answers:
        return Tally()
    answers = min(most, old.answers)
    return Tally(answers, round(old.errors * answers / old.answers))


def _told_slow(gate: Gate, old: VersionAnswers | None) -> Gate:
    """What is slow is settled once, by answers that are not part of the comparison, or it would not be fair."""
    if gate.slow_from is not None or old is None or sum(old.first_byte) < LEARN_FROM:
        return gate
    left, total = 0, sum(old.first_byte)
    for place in reversed(range(len(old.first_byte))):
        left += old.first_byte[place]
        if left > SLOW_SHARE * total:
            return replace(gate, slow_from=place + 1)
    return gate


def _added(tally: Tally, before: VersionAnswers | None, now: VersionAnswers | None, slow_from: int | None) -> Tally:
    if now is None:
        return tally
    if before is None or before.answers > now.answers:
        before = VersionAnswers(now.version)
    answers = tally.answers + now.answers - before.answers
    tally = replace(tally, answers=answers, errors=tally.errors + max(0, now.errors - before.errors))
    if slow_from is None:
        return tally
    timed = sum(now.first_byte) - sum(before.first_byte)
    slow = sum(now.first_byte[slow_from:]) - sum(before.first_byte[slow_from:])
    return replace(tally, timed=tally.timed + max(0, timed), slow=tally.slow + min(max(0, slow), max(0, timed)))


# ---- what follows


def strongest(gate: Gate, rollout: Rollout) -> float:
    """Logarithm of the stronger evidence of the two: of errors, and of slowness."""
    return max(_of_errors(gate, rollout), _of_slowness(gate, rollout))


def complaint(gate: Gate, rollout: Rollout) -> str:
    """What the new version is condemned for; empty while nothing is proved against it.

    Errors and slowness are two claims, which may be refuted wrongly half as often each.
    """
    limit = math.log(2.0 / rollout.false_rollback_rate)
    old, new = gate.old, gate.new
    if _of_errors(gate, rollout) >= limit:
        return (
            f"{_part(new.errors, new.answers)} of its answers failed, {_part(old.errors, old.answers)} of the old ones"
        )
    if _of_slowness(gate, rollout) >= limit:
        slow = f"{_part(new.slow, new.timed)} of its answers were slow, {_part(old.slow, old.timed)} of the old ones"
        return slow + _limit_text(gate)
    return ""


def _limit_text(gate: Gate) -> str:
    place = (gate.slow_from or 1) - 1
    return f" (slower than {BOUNDS_S[min(place, len(BOUNDS_S) - 1)]:g}s to the first byte)"


def _of_errors(gate: Gate, rollout: Rollout) -> float:
    """Failures tend to come sooner than answers. So what is still under way on the new version is taken to end well, or
    the first to come back would speak for all."""
    old, new = gate.old, gate.new
    asked = (new.answers + gate.pending, new.errors)
    return evidence((old.answers, old.errors), asked, rollout.max_error_rate_increase)


def _of_slowness(gate: Gate, rollout: Rollout) -> float:
    old, new = gate.old, gate.new
    return evidence((old.timed, old.slow), (new.timed, new.slow), rollout.max_slow_rate_increase)


def _part(bad: int, answers: int) -> str:
    return f"{bad} of {answers} ({bad / answers if answers else 0:.1%})"
