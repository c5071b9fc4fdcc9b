"""One worker's run: the outer loop, its checkpoints, its metrics."""

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from framework import files
from framework.assemble import assemble
from framework.config import Config
from framework.data.splits import epoch_batches
from framework.distill_higher import outer_gradient
from framework.errors import UserError
from framework.evaluation.selection import Assessor, select_best
from framework.files import LAST, FolderLock, write_text
from framework.machine import peak_memory_mib
from framework.outer.engine import RealBatch
from framework.outer.policies.policy import Window
from framework.outer.synthetic import Grads
from framework.report.metrics import Reporter, mirror_to_wandb
from framework.report.plots import accuracy_plot
from framework.report.tables import percent, result_table
from framework.rng import generator
from framework.run.checkpoint import find_run, save_run
from framework.run.distributed import Comm, PeerLost
from framework.run.interrupt import Interrupted, StopRequest
from framework.run.memory import ELSEWHERE, OutOfMemory, advice, explained
from framework.run.progress import Diverged, Progress


class Run:
    """A distillation run on one rank.

    Args:
        config: validated flags.
        comm: this process and its peers.
        device: where everything lives.
        lock: of the run's folder; only rank 0 holds it.
    """

    def __init__(self, config: Config, comm: Comm, device: torch.device, lock: FolderLock) -> None:
        self.config, self.comm, self.device, self.lock = config, comm, device, lock
        self.folder = config.folder
        self.stop = StopRequest()
        # Rank 0's: another node may not see the folder.
        saved = comm.from_main(find_run(self.folder, config) if comm.main else None)
        if saved is None and config.resume and comm.main:
            print(f"--resume: {self.folder} holds no checkpoint yet; starting a new run", flush=True)
        self.parts = assemble(config, comm, device)
        self.assessor = Assessor(config, comm, self.parts, lambda: self.stop.check(comm, collective=False))
        self.progress = Progress(config.start_epoch)
        if saved is not None:
            self._restore(saved)
        self.reporter: Reporter | None = None
        self.clock = time.monotonic() - self.progress.seconds
        self.last_save = time.monotonic()

    def run(self) -> int:
        """Distil, evaluate, report. Returns the exit code."""
        if self.comm.main:
            self._open_folder()
        summary: dict[str, Any] = {}
        try:
            with self.stop:
                try:
                    while self.progress.epoch < self.config.epochs:
                        self._epoch()
                    if self.comm.main:  # one process is enough for a few networks at the very end
                        with explained(self._advice):
                            summary = self.assessor.summarise(self.folder, self.progress, self._seconds)
                except (Interrupted, PeerLost, OutOfMemory, Diverged) as reason:
                    # Wherever these are raised, the state is that after some whole number of steps.
                    self._save()
                    if isinstance(reason, UserError):
                        raise
                    if self.comm.main:
                        where = self.folder / LAST
                        print(f"stopped by {reason}: saved {where}; continue with --resume", flush=True)
                    return reason.exit_code
        finally:
            if self.reporter is not None:
                self.reporter.close()
        if self.comm.main:
            print(result_table(summary), flush=True)
        return 0

    # ---- the outer loop ----------------------------------------------------------------------------

    def _epoch(self) -> None:
        """Take the rest of the current epoch's outer steps, then close it."""
        p, parts = self.progress, self.parts
        order = generator(self.config.seed, "real order", p.epoch)
        batches = epoch_batches(len(parts.real.train), parts.batch_size, order)
        share = parts.batch_size // self.comm.size
        mine = slice(self.comm.rank * share, (self.comm.rank + 1) * share)
        todo = batches[p.step_in_epoch :, mine]
        images = parts.real.train.batches(todo)
        for batch in todo:
            if p.window is None or (parts.policy.every_step and p.window_step != p.step):
                # Kept at once: a run that stops within this step must not ask the policy for it again.
                if self.comm.main:
                    p.window = self._choose_window()
                p.window_step = p.step
                p.window = self.comm.from_main(p.window)
            assert p.window is not None
            self._outer_step(Window(*p.window), batch, images)
            self.stop.check(self.comm)
            if time.monotonic() - self.last_save > 60 * self.config.ckpt_minutes:
                self._save()
        self._close_epoch()

    def _choose_window(self) -> list[int]:
        """Ask the policy, which may ask for a probe. Rank 0 only."""
        parts, key = self.parts, ("probe", self.progress.step)

        def probe() -> list[float]:
            theta = parts.network.init(generator(self.config.seed, *key, "network"))
            plan = parts.sampler.plan(self.config.totwindow, generator(self.config.seed, *key, "trajectory"))
            images, labels = parts.set.images, parts.set.labels
            return parts.loop.probe_norms(theta, images, labels, plan.to(self.device))

        return list(parts.policy.choose(probe))

    def _outer_step(self, window: Window, batch: Tensor, images: Iterator[Tensor]) -> None:
        """Average the ranks' meta-gradients and apply them; skip them where they are not finite.

        Args:
            window: where to differentiate.
            batch: (B,) indices of this rank's real images.
            images: of which the next are theirs (B, C, H, W).
        """
        began = time.monotonic()
        parts, key = self.parts, (self.comm.rank, self.progress.step)
        seed, labels = self.config.seed, parts.real.train.labels[batch.to(self.device)]
        trajectories, networks = generator(seed, "trajectory", *key), generator(seed, "network", *key)
        count = range(self.config.meta_batch)
        plans = [parts.sampler.plan(sum(window), trajectories).to(self.device) for _ in count]
        thetas = [parts.network.init(networks) for _ in count]
        draw = parts.real_augmentation.draw(1, len(batch), generator(seed, "real batch", *key)).at(0)
        real = RealBatch(next(images), F.one_hot(labels, parts.real.num_classes).float(), draw.to(self.device))
        s = parts.set
        with explained(self._advice):
            result = outer_gradient(parts.engine, thetas, s.images, s.labels, plans, window, real)
        gradients = [gradient for gradient in result.grads if gradient is not None]
        alignment, mask = torch.zeros_like(result.loss), None
        if parts.alignment is not None:
            trained = result.theta.view(-1, parts.network.size)[0]
            psp = parts.alignment.pull(parts.network, trained, s.images, real.images, labels, self.progress.step)
            gradients[0] = (gradients[0] + psp.gradient) * psp.mask
            alignment, mask = psp.loss, psp.mask
        loss, accuracy, alignment, *gradients = self.comm.average([result.loss, result.accuracy, alignment, *gradients])
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
        # The step's only wait for the device. All ranks see the same numbers, and so skip the same steps.
        numbers = torch.stack([loss, accuracy, norm, alignment]).tolist()
        if all(map(math.isfinite, numbers)):
            _, clip = s.update(Grads(gradients[0], gradients[1] if s.learn_labels else None), mask)
            self._record_step(*numbers, clip=clip, seconds=time.monotonic() - began)
        else:
            self._skip_step(*numbers[:3])

    def _skip_step(self, loss: float, accuracy: float, norm: float) -> None:
        """Count, tell and record a step whose meta-gradient is not finite; the set stays as it is."""
        p = self.progress
        p.skip()
        if self.reporter is not None:
            self.reporter.bar.update()
            self.reporter.say(
                f"outer step {p.step} skipped: its meta-gradient is not finite (loss {loss:g}, norm {norm:g}); "
                f"{p.skipped_in_row} in a row, {p.skipped_in_run} in this run"
            )
            values = {"loss": loss, "accuracy": accuracy, "meta_gradient_norm": norm}
            self.reporter.log("skipped", p.step, epoch=p.epoch + 1, **values, skipped_in_run=p.skipped_in_run)
        p.check(self.config.max_bad_steps)

    def _record_step(
        self, loss: float, accuracy: float, norm: float, alignment: float, *, clip: Tensor, seconds: float
    ) -> None:
        """Count a step, which took ``seconds``; every ``--print_freq`` steps show it."""
        p = self.progress
        p.applied(loss, accuracy)
        if self.reporter is None:
            return
        self.reporter.bar.update()
        if p.step % self.config.print_freq == 0 or p.step_in_epoch == self.parts.steps_per_epoch:
            assert p.window is not None
            start, length = p.window
            self.reporter.bar.set_postfix(loss=f"{loss:.3f}", acc=f"{accuracy:.3f}", window=f"{start}+{length}")
            self.reporter.log(
                "step",
                p.step,
                epoch=p.epoch + 1,
                loss=loss,
                accuracy=accuracy,
                meta_gradient_norm=norm,
                clip_factor=clip.item(),
                alignment=alignment if self.parts.alignment else None,
                window_start=start,
                window_length=length,
                seconds=self._seconds(),
                seconds_per_step=seconds,
                peak_memory_mib=peak_memory_mib(self.device),
            )

    def _close_epoch(self) -> None:
        """Evaluate if it is time, tell the policy, move on, checkpoint."""
        c, p, policy, s = self.config, self.progress, self.parts.policy, self.parts.set
        number = p.epoch + 1
        self.comm.verify([s.images, s.labels], f"after epoch {number}, the synthetic set")
        due = number % c.test_freq == 0 or number == c.epochs
        # Before any of the state changes: an evaluation that is interrupted is simply done again.
        if due:
            with explained(self._advice):
                self._evaluate(number)
        loss, accuracy = p.means()
        if self.reporter is not None:
            assert p.window is not None
            window = {"window_start": p.window[0], "window_length": p.window[1]}
            values = {"loss": loss, "accuracy": accuracy, "skipped": p.skipped}
            self.reporter.log("epoch", p.step, epoch=number, **values, **window, **policy.state())
            if due:
                self.reporter.truncation(p.step, policy.curves(), Window(*p.window))
        if math.isfinite(loss):
            policy.observe(loss, accuracy)
        p.next_epoch()
        if number % c.ckpt_epochs == 0 or number == c.epochs:
            self._save()

    # ---- evaluation --------------------------------------------------------------------------------

    def _evaluate(self, epoch: int) -> None:
        """Evaluate the current set; keep it if it is the best so far."""
        p, s = self.progress, self.parts.set
        entry = self.assessor.evaluate(epoch)
        best = select_best(p.best, entry, s.snapshot())
        if self.reporter is not None:
            if best is not p.best:
                self.assessor.export(best, self.folder)
            accuracy_plot([*p.history, entry], self.folder / files.CURVES)
            deviation = entry["scores"][entry["lengths"].index(entry["best_length"])]["top1_std"]
            self.reporter.say(
                f"epoch {epoch}: {entry['split']} accuracy {percent(entry['accuracy'], deviation)} % after "
                f"{entry['best_length']} steps (best {percent(best['accuracy'], None)} at epoch {best['epoch']})"
            )
            self.reporter.log("evaluation", p.step, seconds=self._seconds(), **entry)
            self.reporter.pictures("synthetic images", self.assessor.pictures(s.images), p.step)
        p.history.append(entry)
        p.best = best

    # ---- state -------------------------------------------------------------------------------------

    def _open_folder(self) -> None:
        c, real = self.config, self.parts.real
        self.lock.make()
        write_text(self.folder / files.CONFIG, c.to_json() + "\n")
        if c.wandb:
            mirror_to_wandb(c.name, dataclasses.asdict(c), self.folder)
        total = (c.epochs - c.start_epoch) * self.parts.steps_per_epoch
        self.reporter = Reporter(self.folder, total, self.progress.step, self.progress.records)
        if c.batch_size > self.parts.batch_size:
            self.reporter.say(
                f"--batch_size {c.batch_size}: only {self.parts.batch_size} real training images; using all"
            )
        validation = 0 if real.val is None else len(real.val)
        execution = self.parts.loop.execution
        self.reporter.say(
            f"{c.policy} on {c.dataset}, engine {c.engine_name} ({execution}), {self.device}: "
            f"{len(self.parts.set.images)} synthetic images, {len(real.train)} real (and {validation} for validation), "
            f"{self.parts.steps_per_epoch} outer steps per epoch, {self.parts.network.size:,} parameters; {self.folder}"
        )
        if execution.compile:
            self.reporter.say("compiling the inner steps: the first outer step takes half a minute longer or more")

    def _advice(self) -> str:
        """What to lower if memory runs out."""
        kept = f"the last good state is saved in {self.folder / LAST}"
        return f"{advice(self.config, self.parts.memory, self.device)}; {kept}"

    def _seconds(self) -> float:
        """Since the start of the run, pauses between attempts left out."""
        return time.monotonic() - self.clock

    def _save(self) -> None:
        """Write ``last.pt``: everything that changes during the run. The one before becomes ``previous.pt``."""
        self.last_save = time.monotonic()
        if not self.comm.main:
            return
        assert self.reporter is not None
        self.progress.seconds, self.progress.records = self._seconds(), self.reporter.records
        state = {
            "config": self.config.to_json(),
            "progress": dataclasses.asdict(self.progress),
            "set": self.parts.set.state_dict(),
            "policy": self.parts.policy.state_dict(),
            "processes": self.comm.size,
        }
        save_run(self.folder, state)

    def _restore(self, saved: dict[str, Any]) -> None:
        try:
            self.parts.set.load_state_dict(saved["set"])
            self.parts.policy.load_state_dict(saved["policy"])
            self.progress = Progress(**saved["progress"])
            processes = saved["processes"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{self.folder / LAST}: not a complete checkpoint ({error}); choose another --save_dir"
            ) from error
        if processes != self.comm.size and self.comm.main:
            print(
                f"--resume: saved by {processes} process(es), continued by {self.comm.size}: same set, optimiser and "
                "policy; new random streams, so not the steps that the others would have taken",
                flush=True,
            )


def main_worker(config: Config, comm: Comm, device: torch.device) -> int:
    """Run one worker from start to end. Returns the exit code."""
    lock = FolderLock(config.folder)
    with explained(lambda: ELSEWHERE), lock if comm.main else nullcontext():
        return Run(config, comm, device, lock).run()
