"""Fixes for the whole network, for the part that is to blame, those first that match what was found.

A fix is kept if the quantized model is better for it, or its part is (weights or activations alone on their grids) and
the model is no worse; but not if the other part, which had reached the target, then misses it. Where noise drowns the
outputs, and scores tell nothing either, what counts is how the sensitive_quantizers do, each alone on its grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from glob import escape

from ..errors import OnnxqError
from ..options import Options, Override
from ..thresholds import CLEAR_DB, LEAST_GAIN_DB, NOISE_FLOOR_DB, TRIES
from .log import Log
from .remedies import FIXES, PER_CHANNEL, Fix
from .sensitive_quantizers import SensitiveQuantizer, mean_alone, note_repairs
from .trial import Goal, Part, Trial, try_options


@dataclass
class NetworkRepair:
    """trial: the best so far."""

    trial: Trial
    goal: Goal
    log: Log
    without: Collection[str]
    sensitive_quantizers: Sequence[SensitiveQuantizer]

    @property
    def reached(self) -> bool:
        return self.goal.accepts(self.trial)

    @property
    def clear(self) -> bool:
        """Whether there is nothing to be gained any more."""
        return self.reached and self.trial.whole.db >= CLEAR_DB

    def run(self) -> None:
        """Try fixes until the target is reached and noise cannot be heard; on the way from the one to the other only
        what costs nothing, since a target that few samples say is reached may be missed by others. A fix that was
        refused has another try once others were kept: the noise that drowned it may be gone."""
        tries: Counter[Fix] = Counter()
        waiting = set(FIXES)
        while not self.clear and (fix := self._next(waiting)) is not None:
            waiting.discard(fix)
            tries[fix] += 1
            if self._try(fix):
                waiting.update(other for other in tries if tries[other] < TRIES)
                waiting -= {other for other in waiting if other.name == fix.name}  # one of a kind

    def take_back(self, start: Options) -> None:
        """One scale for each channel costs something: none, or fewer, where the target still holds.

        start: the options before any fix.
        """
        if not (self.reached and self.trial.options.per_channel and not start.per_channel):
            return
        fewer = replace(self.trial.options, per_channel=False)
        cured = [culprit.name for culprit in self.sensitive_quantizers if culprit.repaired_by == PER_CHANNEL.title]
        some = tuple(Override(escape(name), per_channel=True) for name in cured)
        specs = {"one weight scale for each layer": fewer}
        if some:
            only = f"one weight scale for each channel only for {', '.join(cured)}"
            specs[only] = replace(fewer, overrides=(*fewer.overrides, *some))
        for title, options in specs.items():
            tried = try_options(self.trial.study, options)
            holds = self.goal.accepts(tried)
            verdict = "taken back" if holds else "the target would be missed: not taken back"
            self.log.write(f"Take back: {title}", f"{self._change(self.trial, tried)}: {verdict}.")
            if holds:
                self.trial = tried
                return

    def _next(self, waiting: Collection[Fix]) -> Fix | None:
        """For the parts that miss the target, if one does: first for the worse part, then what matches the findings,
        then what costs nothing."""
        parts = self.goal.worse_first(self.trial)
        missed = [part for part in parts if not self.goal.reached(self.trial.parts[part])] or parts
        found = {finding.kind for culprit in self.sensitive_quantizers for finding in culprit.findings}
        left = [f for f in FIXES if f in waiting and f.name not in self.without and f.applies(self.trial.options)]
        left = [fix for fix in left if set(fix.parts) & set(missed) and not (fix.costs and self.reached)]
        left.sort(key=lambda fix: (missed[0] not in fix.parts, not fix.cures & found, fix.costs))
        return next(iter(left), None)

    def _try(self, fix: Fix) -> bool:
        """Whether it was kept."""
        part = next(part for part in self.goal.worse_first(self.trial) if part in fix.parts)
        title, before = f"Fix: {fix.title}", self.trial
        try:
            after = try_options(before.study, fix.apply(before.options))
        except OnnxqError as error:
            self.log.write(title, f"Not possible: {error}")
            return False
        if after.quantized == before.quantized:
            self.log.write(title, "Changes nothing here.")
            return False
        kept, reason = self._judge(before, after, part)
        lines = [
            f"{part} alone: {self.log.standing(before.parts[part])} -> {self.log.standing(after.parts[part])};"
            f" quantized model: {self._change(before, after)}: {reason}{'kept' if kept else 'not kept'}."
        ]
        if kept:
            self.trial = after
            lines += note_repairs(after, self.goal, self.sensitive_quantizers, fix.title)
            lines.append(self.log.objection(self.goal, after))
        self.log.write(title, *lines)
        return kept

    def _judge(self, before: Trial, after: Trial, part: Part) -> tuple[bool, str]:
        """Whether to keep a fix for a part, and why, where that needs to be said."""
        reached, better = self.goal.reached, self.goal.better
        spoilt = [
            name
            for name, was in before.parts.items()
            if reached(was) and not reached(after.parts[name]) and better(was, after.parts[name])
        ]
        if spoilt:
            return False, f"it spoils the {' and '.join(spoilt)}: "
        drowned = max(before.whole.db, after.whole.db) < NOISE_FLOOR_DB
        if drowned and abs(before.whole.score - after.whole.score) <= self.goal.noise:
            gain = mean_alone(after, self.sensitive_quantizers) - mean_alone(before, self.sensitive_quantizers)
            return (
                gain > LEAST_GAIN_DB,
                f"that is chance, but the sensitive quantizers alone gain {gain:.1f} dB on average: ",
            )
        if self.goal.accepts(before) and not self.goal.accepts(after):
            return False, "the target would be missed: "
        no_worse = not better(before.whole, after.whole)
        return better(after.whole, before.whole) or (better(after.parts[part], before.parts[part]) and no_worse), ""

    def _change(self, before: Trial, after: Trial) -> str:
        return f"{self.log.standing(before.whole)} -> {self.log.standing(after.whole)}"
