"""One worker's run: it applies what the method proposes, evaluates, records and saves."""

import dataclasses
import math
import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from framework import files
from framework.assemble.registry import assemble
from framework.config.distilling import Distilling
from framework.distilled.labels import match_classes
from framework.errors import UserError
from framework.evaluation.selection import Assessor, select_best
from framework.files import CannotWrite, FolderLock, write_text
from framework.machine import peak_memory_mib
from framework.outer.method import Proposal, Rejected
from framework.outer.synthetic import joint_norm
from framework.report.metrics import Reporter
from framework.report.tables import result_table
from framework.report.trackers import Tracker
from framework.run import checkpoint
from framework.run.chores import Seldom
from framework.run.clock import Clock
from framework.run.distributed import Comm, PeerLost
from framework.run.interrupt import Interrupted, StopRequest
from framework.run.memory import ELSEWHERE, OutOfMemory, advice, explained
from framework.run.progress import Diverged, Progress

CHECKPOINTS_SHARE = 0.001  # of a run's time, where the flags do not say how often


class Run:
    """A distillation run on one rank.

    Args:
        config: validated flags.
        comm: this process and its peers.
        device: where everything lives.
        lock: of the run's folder; only rank 0 holds it.
    """

    def __init__(self, config: Distilling, comm: Comm, device: torch.device, lock: FolderLock) -> None:
        self.config, self.comm, self.device, self.lock = config, comm, device, lock
        self.folder = config.folder
        self.stop = StopRequest()
        # Rank 0's: another node may not see the folder.
        saved = comm.from_main(checkpoint.find_run(self.folder, config) if comm.main else None)
        if saved is None and config.resume and comm.main:
            print(f"--resume: {self.folder} holds no checkpoint yet; starting a new run", flush=True)
        self.parts = assemble(config, comm, device)
        self.method, self.set = self.parts.method, self.parts.set
        self.assessor = Assessor(config, comm, self.parts, lambda: self.stop.check(comm, collective=False))
        self.progress = Progress(config.start_epoch)
        self.resumed = saved is not None
        if saved is not None:
            self._restore(saved)
        self.reporter: Reporter | None = None
        self.clock = Clock(self.progress.seconds, self.progress.cpu_seconds)
        self.checkpoints = Seldom(CHECKPOINTS_SHARE)
        self.last_save = time.monotonic()

    def run(self) -> int:
        """Distil, evaluate, report. Returns the exit code."""
        if self.comm.main:
            self._open_folder()
        try:
            with self.stop:
                try:
                    if self.config.eval_only:
                        self._evaluate_alone()
                    while not (self.config.eval_only or self._over):
                        self._epoch()
                    if self.comm.main:  # one process is enough for a few networks at the very end
                        with explained(self._advice):
                            summary = self.assessor.summarise(self.folder, self.progress, self.clock)
                except (Interrupted, PeerLost, OutOfMemory, Diverged) as reason:
                    # Wherever these are raised, the state is that after some whole number of steps.
                    self._save()
                    if isinstance(reason, UserError):
                        raise
                    if self.comm.main:
                        print(f"stopped by {reason}: {self._left_behind()}", flush=True)
                    return reason.exit_code
        finally:
            if self.reporter is not None:
                self.reporter.close()
        if self.comm.main:
            print(result_table(summary), flush=True)
        return 0

    def _left_behind(self) -> str:
        """Export the best snapshot of a run that stops early; what to say of it."""
        if self.config.eval_only:
            return "the evaluation was not finished; give the same command again"
        if self.progress.best is not None:
            self.assessor.export(self.progress.best, self.folder, now=True)
        return f"saved {self.folder / files.LAST}; continue with --resume"

    # ---- the outer loop ----------------------------------------------------------------------------

    def _epoch(self) -> None:
        """Take the rest of the current epoch's outer steps, then close it."""
        proposals = self.method.proposals(self.progress.epoch, self.progress.step_in_epoch)
        while True:
            began = time.monotonic()
            with explained(self._advice):
                proposal = next(proposals, None)
            if proposal is None:
                break
            self._apply(proposal, began)
            self.stop.check(self.comm)
            if time.monotonic() - self.last_save > 60 * self.config.ckpt_minutes:
                self._save()
        self._close_epoch()

    def _apply(self, proposal: Proposal, began: float) -> None:
        """Average the ranks' proposals and apply them; skip the step where they are not finite."""
        scalars = {"loss": proposal.loss} | ({} if proposal.accuracy is None else {"accuracy": proposal.accuracy})
        scalars |= {name: fact for name, fact in proposal.facts.items() if isinstance(fact, Tensor)}
        averaged = self.comm.average([*scalars.values(), *proposal.grads.values()])
        grads = dict(zip(proposal.grads, averaged[len(scalars) :], strict=True))
        # The step's only wait for the device. All ranks see the same numbers, and so skip the same steps.
        numbers = torch.stack([*averaged[: len(scalars)], joint_norm(grads)]).tolist()
        facts = {**proposal.facts, **dict(zip([*scalars, "meta_gradient_norm"], numbers, strict=True))}
        if not all(map(math.isfinite, numbers)):
            self._skip_step(facts, "its meta-gradient is not finite")
        elif facts["loss"] > proposal.limit:
            self._record_step(facts | {"passed_over": True}, {}, time.monotonic() - began)
        else:
            try:
                updated = self.set.update(grads, proposal.mask, proposal.clip)
            except Rejected as reason:
                self._skip_step(facts, str(reason))
            else:
                self.method.applied(facts["meta_gradient_norm"])
                self._record_step(facts, updated, time.monotonic() - began)

    def _skip_step(self, facts: dict[str, Any], reason: str) -> None:
        """Count, tell and record a step that cannot be applied; the set stays as it is."""
        self.progress.skip()
        if self.reporter is not None:
            self.reporter.skipped(self.progress, facts, reason)
        self.progress.check(self.config.max_bad_steps, reason, self.method.remedy)

    def _record_step(self, facts: dict[str, Any], updated: dict[str, Tensor], seconds: float) -> None:
        """Count a step, which took ``seconds``; every ``--print_freq`` steps show it, with what the update tells."""
        p = self.progress
        p.applied(facts["loss"], facts.get("accuracy", math.nan))
        if self.reporter is None:
            return
        shown = p.step % self.config.print_freq == 0 or p.step_in_epoch == self.method.steps_per_epoch
        if shown:
            facts |= {name: value.item() for name, value in updated.items()}
            facts |= {"seconds": self.clock.seconds, "seconds_per_step": seconds}
            facts |= {"peak_memory_mib": peak_memory_mib(self.device)}
        self.reporter.step(p, facts, shown=shown)

    def _close_epoch(self) -> None:
        """Evaluate if it is time, tell the method, move on, checkpoint."""
        c, p = self.config, self.progress
        number = p.epoch + 1
        self.comm.verify(list(self.set.learnt.values()), f"after epoch {number}, the synthetic set")
        due = c.is_evaluated(number)
        # Before any of the state changes: an evaluation that is interrupted is simply done again.
        if due:
            with explained(self._advice):
                self._evaluate(number, last=number == c.total_epochs)
        last = number == c.total_epochs or self._gave_up
        (loss, accuracy), curves = p.means(), self.method.curves()
        facts = self.method.close_epoch(loss, accuracy)
        if self.reporter is not None:
            values = {"loss": loss, "accuracy": accuracy, "skipped": p.skipped}
            self.reporter.log("epoch", p.step, epoch=number, **values, **facts)
            if due:
                if curves:
                    self.reporter.probe(p.step, curves, facts)
                self.reporter.plot(p.history, lambda: self.assessor.pictures(self.set.images), p.step, last=last)
        p.next_epoch()
        if last or (self.checkpoints.due() if c.ckpt_epochs is None else number % c.ckpt_epochs == 0):
            self._save()

    # ---- evaluation --------------------------------------------------------------------------------

    @property
    def _gave_up(self) -> bool:
        """Whether --patience has run out."""
        return self.progress.gave_up(self.config.patience)

    @property
    def _over(self) -> bool:
        """Whether there are no more epochs to come."""
        return self.progress.epoch >= self.config.total_epochs or self._gave_up

    def _evaluate(self, epoch: int, last: bool) -> None:
        """Evaluate the current set in all of its forms; keep the best so far."""
        p, c = self.progress, self.config
        snapshots = self.set.snapshots()
        entries = [self.assessor.evaluate(epoch, form, snapshot) for form, snapshot in snapshots.items()]
        for entry in entries:  # all are there: one that is interrupted must leave no trace
            p.history.append(entry)
            p.best = select_best(p.best, entry, snapshots[entry.form])
        if self.reporter is not None:
            assert p.best is not None
            self.assessor.export(p.best, self.folder, now=last or self._gave_up)
            for entry in entries:
                self.reporter.evaluated(entry, p.best, p.step, self.clock)
            if self._gave_up and not last:
                self.reporter.say(
                    f"--patience {c.patience}: {p.fruitless} evaluation(s) in a row were no better; ending after epoch "
                    f"{epoch} of {c.total_epochs}"
                )

    def _evaluate_alone(self) -> None:
        """``--eval_only``: evaluate the set as it is, unless the checkpoint has that evaluation."""
        p = self.progress
        if p.step_in_epoch or all(entry.epoch != p.epoch for entry in p.history):
            with explained(self._advice):
                self._evaluate(p.epoch, last=True)
        if self.reporter is not None:
            self.reporter.plot(p.history, lambda: self.assessor.pictures(self.set.images), p.step, last=True)

    # ---- state -------------------------------------------------------------------------------------

    def _open_folder(self) -> None:
        c = self.config
        self.lock.make()
        if not (c.eval_only and self.resumed):  # the run's flags are the folder's
            write_text(self.folder / files.CONFIG, c.to_json() + "\n")
        trackers = [Tracker(name, c.name, dataclasses.asdict(c), self.folder) for name in c.trackers]
        total = (c.total_epochs - c.start_epoch) * self.method.steps_per_epoch
        self.reporter = Reporter(self.folder, total, self.progress.step, self.progress.records, trackers)
        for line in self.parts.description:
            self.reporter.say(line)

    def _advice(self) -> str:
        """What to lower if memory runs out."""
        kept = "" if self.config.eval_only else f"; the last good state is saved in {self.folder / files.LAST}"
        return f"{advice(self.config, self.parts.memory, self.device)}{kept}"

    def _save(self) -> None:
        """Write ``last.pt``: everything that changes during the run. The one before becomes ``previous.pt``."""
        self.last_save = time.monotonic()
        if not self.comm.main or self.config.eval_only:  # a run that goes on later must not know of an evaluation
            return
        assert self.reporter is not None
        self.progress.seconds, self.progress.cpu_seconds = self.clock.seconds, self.clock.cpu_seconds
        self.progress.records = self.reporter.records
        with self.checkpoints.doing():
            state = {
                "config": self.config.to_json(),
                "progress": dataclasses.asdict(self.progress),
                "set": self.set.state_dict(),
                "method": self.method.state_dict(),
                "processes": self.comm.size,
                "class_names": list(self.parts.real.class_names),
                "data": self.parts.real.identity,
            }
            checkpoint.save_run(self.folder, state)

    def _restore(self, saved: dict[str, Any]) -> None:
        last = self.folder / files.LAST
        self._check_classes(saved.get("class_names"))
        self._check_content(saved.get("data"))
        try:
            self.set.load_state_dict(saved["set"])
            self.method.load_state_dict(saved["method"])
            self.progress = Progress.restored(saved["progress"], last)
            processes = saved["processes"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{last}: not a complete checkpoint ({error}); choose another --save_dir") from error
        if processes != self.comm.size and self.comm.main:
            print(
                f"--resume: saved by {processes} process(es), continued by {self.comm.size}: same set, optimiser and "
                "policy; new random streams, so not the steps that the others would have taken",
                flush=True,
            )

    def _check_classes(self, saved: list[str] | None) -> None:
        """Refuse data of other classes, or of another order: a checkpoint's tensors cannot be reordered.

        Checkpoints of earlier versions have no names.
        """
        source, data = f"--resume: {self.folder / files.LAST}", self.parts.real.class_names
        if saved is not None and match_classes(saved, data, source) != list(range(len(data))):
            raise UserError(f"{source}: the data's classes are in another order now; give the data as they were")

    def _check_content(self, saved: str | None) -> None:
        """Refuse other data of one's own under the same name; checkpoints of earlier versions do not say."""
        if saved not in (None, self.parts.real.identity):
            raise UserError(
                f"--resume: {self.folder / files.LAST}: was begun on data of another content than that of "
                f"{self.config.dataset}; give those data, or another --save_dir"
            )


def main_worker(config: Distilling, comm: Comm, device: torch.device) -> int:
    """Run one worker from start to end. Returns the exit code."""
    lock = FolderLock(config.folder)
    try:
        with explained(lambda: ELSEWHERE), lock if comm.main else nullcontext():
            return Run(config, comm, device, lock).run()
    except CannotWrite as error:
        raise CannotWrite(f"{error}, then continue with --resume") from error
