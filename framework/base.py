"""One worker's run: wiring, the outer loop, evaluation, checkpoints."""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from framework import checkpoint, data, networks, report
from framework.augment import Augmentation
from framework.config import Config, UserError, check_against_data, differences
from framework.data import RealData
from framework.distill_higher import MetaGradient, RealBatch, outer_gradient
from framework.distributed import Comm
from framework.evaluate import BASELINES, Candidate, Evaluation, Evaluator, TrainingSet
from framework.inner import make_optimizer
from framework.interrupt import Interrupted, StopRequest
from framework.rng import generator
from framework.synthetic import ClassSampler, Grads, SyntheticSet, noise_images, one_hot_labels
from framework.truncation import Window, make_policy


@dataclasses.dataclass
class Progress:
    """Where a run stands; together with set, policy and configuration, all there is to resume."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0  # outer steps since the start of the run
    window: list[int] | None = None  # start and length in force
    loss_sum: float = 0.0  # over the epoch's steps so far
    accuracy_sum: float = 0.0
    seconds: float = 0.0  # spent in earlier attempts and this one
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # evaluations
    best: dict[str, Any] | None = None  # evaluation, images and labels of the selected snapshot


class Run:
    """A distillation run on one rank.

    Args:
        config: validated flags.
        comm: this process and its peers.
        device: where everything lives.
    """

    def __init__(self, config: Config, comm: Comm, device: torch.device) -> None:
        self.config, self.comm, self.device = config, comm, device
        self.folder = config.folder
        self.started = time.monotonic()
        self.stop = StopRequest()
        saved = self._read_checkpoint()
        self.real = self._load_data()
        c, channels, side = config, *self.real.image_shape[:2]
        k = self.real.num_classes
        check_against_data(c, k, side)

        self.rule = make_optimizer(c.inner_optim, c.inner_lr)
        module = networks.build(c.arch, channels, side, k, width=c.width, depth=c.depth)
        self.network = networks.FlatNetwork(module, device)
        self.sampler = ClassSampler(
            k,
            c.num_per_class,
            c.task_sampler_nc or k,
            c.batch_per_class,
            Augmentation(c.syn_strategy, c.comp_aug, side),
        )
        self.real_augmentation = Augmentation(c.real_strategy, c.comp_aug_real, side)
        self.policy = make_policy(
            c.policy, steps=c.totwindow, window=c.window, minimum=c.minwindow, seed=c.seed,
            complete_random=c.complete_random,
        )  # fmt: skip
        self.set = self._new_set()
        self.evaluator = Evaluator(self.network, self.rule, c.seed, tick=lambda steps: self._tick(steps))
        self.progress = Progress(epoch=c.start_epoch)
        if saved is not None:
            self.set.load_state_dict(saved["set"])
            self.policy.load_state_dict(saved["policy"])
            self.progress = Progress(**saved["progress"])
        self.seconds_before = self.progress.seconds
        self.batch_size = min(c.batch_size, len(self.real.train))
        self.steps_per_epoch = max(1, len(self.real.train) // self.batch_size)
        if self.batch_size < comm.size:
            raise UserError(f"--batch_size {self.batch_size} cannot be shared by {comm.size} processes: raise it")
        self.last_save = time.monotonic()
        self.reporter: report.Reporter | None = None
        self.eval_bar: tqdm[Any] | None = None

    # ---- preparation -------------------------------------------------------------------------------

    def _read_checkpoint(self) -> dict[str, Any] | None:
        """The run's last checkpoint when resuming, None for a fresh start.

        Raises:
            UserError: the folder holds a run already, or one of another configuration.
        """
        path = self.folder / "last.pt"
        if not path.exists():
            if self.config.resume and self.comm.main:
                print(f"--resume: {self.folder} holds no checkpoint yet; starting a new run", flush=True)
            return None
        if not self.config.resume:
            raise UserError(
                f"{self.folder} already holds a run: continue it with --resume, or choose another --save_dir"
            )
        saved = checkpoint.load(path)
        try:
            config = json.loads(saved["config"])
            changed = differences(config, self.config)
            missing = {"set", "policy", "progress"} - saved.keys()
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a checkpoint of this program; check --save_dir") from error
        if changed or missing:
            what = "; ".join(changed) or f"it lacks {', '.join(sorted(missing))}"
            raise UserError(
                f"--resume: {path} is of another configuration: {what}; give the same flags, or another --save_dir"
            )
        return saved

    def _load_data(self) -> RealData:
        """Rank 0 reads first, so that downloads and the ZCA cache are made once."""
        c = self.config
        for turn in (True, False):
            if self.comm.main is turn:
                real = data.load(
                    c.dataset, Path(c.root), device=self.device, zca=c.zca, zca_reg=c.zca_reg, im_size=c.im_size,
                    val_fraction=c.val_fraction if c.select == "val" else 0.0, limit_train=c.limit_train,
                    workers=c.workers, progress=self.comm.main,
                )  # fmt: skip
            self.comm.barrier()
        return real

    def _new_set(self) -> SyntheticSet:
        c, k = self.config, self.real.num_classes
        images = noise_images(k, c.num_per_class, self.real.image_shape, generator(c.seed, "synthetic images"))
        labels = one_hot_labels(k, c.num_per_class)
        if c.ckptname != "none":
            loaded = checkpoint.load_tensors(Path(c.ckptname))
            for name, expected in (("images", images), ("labels", labels)):
                if name not in loaded or loaded[name].shape != expected.shape:
                    found = tuple(loaded[name].shape) if name in loaded else "none"
                    raise UserError(
                        f"--ckptname {c.ckptname}: needs {name} of shape {tuple(expected.shape)}, found {found}; "
                        "give a set of the same data set and --num_per_class"
                    )
            images, labels = loaded["images"].float(), loaded["labels"].float()
        return SyntheticSet(
            images.to(self.device), labels.to(self.device), learn_labels=c.train_y, lr=c.lr,
            label_lr=c.lr / c.label_lr_scale, optimizer=c.outer_optim, eps=c.eps, weight_decay=c.wd,
            ema_decay=c.clip_coef,
        )  # fmt: skip

    # ---- the outer loop ----------------------------------------------------------------------------

    def run(self) -> int:
        """Distil, evaluate, report. Returns the exit code."""
        c, p = self.config, self.progress
        if self.comm.main:
            self._open_folder()
        try:
            with self.stop:
                while p.epoch < c.epochs:
                    self._epoch()
                summary = self._finish()
        except Interrupted as interruption:
            self._save()
            if self.comm.main:
                print(f"stopped by {interruption}: saved {self.folder / 'last.pt'}; continue with --resume", flush=True)
            return interruption.exit_code
        finally:
            if self.reporter is not None:
                self.reporter.close()
        if self.comm.main:
            print(report.result_table(summary), flush=True)
        return 0

    def _open_folder(self) -> None:
        c = self.config
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--save_dir {self.folder}: cannot create it ({error.strerror}); choose another") from error
        checkpoint.write_text(self.folder / "config.json", c.to_json() + "\n")
        if c.wandb:
            report.mirror_to_wandb(c.name, dataclasses.asdict(c), self.folder)
        self.reporter = report.Reporter(
            self.folder, (c.epochs - c.start_epoch) * self.steps_per_epoch, self.progress.step
        )
        self.reporter.say(
            f"{c.policy} on {c.dataset}: {len(self.set.images)} synthetic images, {len(self.real.train)} real "
            f"({0 if self.real.val is None else len(self.real.val)} more for validation), {self.steps_per_epoch} outer "
            f"steps per epoch, {self.network.size:,} parameters, {self.device}, into {self.folder}"
        )

    def _epoch(self) -> None:
        """Take the rest of the current epoch's outer steps, then close it."""
        c, p = self.config, self.progress
        batches = data.epoch_batches(len(self.real.train), self.batch_size, generator(c.seed, "real order", p.epoch))
        share = self.batch_size // self.comm.size
        mine = slice(self.comm.rank * share, (self.comm.rank + 1) * share)
        while p.step_in_epoch < self.steps_per_epoch:
            if p.window is None or self.policy.every_step:
                p.window = self.comm.from_main(list(self.policy.choose()) if self.comm.main else None)
            assert p.window is not None
            result = self._outer_step(Window(*p.window), batches[p.step_in_epoch, mine])
            self._observe_step(result)
            self.stop.check(self.comm)
            if time.monotonic() - self.last_save > 60 * c.ckpt_minutes:
                self._save()
        self._close_epoch()

    def _outer_step(self, window: Window, batch: Tensor) -> MetaGradient:
        """One meta-gradient on this rank, averaged over ranks, applied to the set."""
        c, p, rank = self.config, self.progress, self.comm.rank
        plan = self.sampler.plan(sum(window), generator(c.seed, "trajectory", rank, p.step)).to(self.device)
        draw = self.real_augmentation.draw(1, len(batch), generator(c.seed, "real batch", rank, p.step)).at(0)
        batch = batch.to(self.device)
        labels = F.one_hot(self.real.train.labels[batch], self.real.num_classes).float()
        result = outer_gradient(
            self.network, self.rule, self.network.init(generator(c.seed, "network", rank, p.step)),
            self.set.images, self.set.labels, plan, window,
            RealBatch(self.real.train.images[batch], labels, draw.to(self.device)),
        )  # fmt: skip
        gradients = [gradient for gradient in result.grads if gradient is not None]
        loss, accuracy, *gradients = self.comm.average([result.loss, result.accuracy, *gradients])
        grads = Grads(gradients[0], gradients[1] if len(gradients) == 2 else None)
        self.norm, self.clip = self.set.update(grads)
        return MetaGradient(loss, accuracy, grads)

    def _observe_step(self, result: MetaGradient) -> None:
        """Count the step and, every ``--print_freq`` steps, show it. Raises on a broken meta-gradient."""
        p = self.progress
        loss, accuracy, norm, clip = torch.stack([result.loss, result.accuracy, self.norm, self.clip]).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"the meta-gradient is not finite at outer step {p.step} (loss {loss}, norm {norm}): lower --inner_lr "
                f"or --window, or raise --minwindow; the last checkpoint in {self.folder} is intact"
            )
        p.loss_sum += loss
        p.accuracy_sum += accuracy
        p.step += 1
        p.step_in_epoch += 1
        if self.reporter is None:
            return
        self.reporter.bar.update()
        if p.step % self.config.print_freq == 0 or p.step_in_epoch == self.steps_per_epoch:
            assert p.window is not None
            elapsed = self._seconds()
            self.reporter.bar.set_postfix(
                loss=f"{loss:.3f}", acc=f"{accuracy:.3f}", window=f"{p.window[0]}+{p.window[1]}"
            )
            self.reporter.log(
                "step", p.step, epoch=p.epoch, loss=loss, accuracy=accuracy, meta_gradient_norm=norm, clip_factor=clip,
                window_start=p.window[0], window_length=p.window[1],
                seconds_per_step=(elapsed - self.seconds_before) / (self.reporter.bar.n - self.reporter.bar.initial),
                peak_memory_mb=report.peak_memory_mb(self.device), seconds=elapsed,
            )  # fmt: skip

    def _close_epoch(self) -> None:
        """Evaluate if it is time, tell the policy, move on, checkpoint."""
        c, p = self.config, self.progress
        number = p.epoch + 1
        # Before anything of the state changes: an evaluation that is interrupted is simply done again.
        if number % c.test_freq == 0 or number == c.epochs:
            self._evaluate()
        loss, accuracy = p.loss_sum / self.steps_per_epoch, p.accuracy_sum / self.steps_per_epoch
        self.policy.observe(loss, accuracy)
        if self.reporter is not None:
            self.reporter.log("epoch", p.step, epoch=p.epoch, loss=loss, accuracy=accuracy)
        p.epoch, p.step_in_epoch, p.window, p.loss_sum, p.accuracy_sum = number, 0, None, 0.0, 0.0
        if number % c.ckpt_epochs == 0 or number == c.epochs:
            self._save()

    # ---- evaluation --------------------------------------------------------------------------------

    @property
    def _selection(self) -> data.Split:
        return self.real.test if self.real.val is None else self.real.val

    def _evaluate(self) -> None:
        """Train fresh networks on the current set; keep it if it is the best so far on the selection split."""
        c, p = self.config, self.progress
        lengths, total = c.eval_steps, c.num_train_eval
        current = TrainingSet(self.set.images.detach(), self.set.labels.detach(), self.sampler)
        self._start_bar(f"evaluating epoch {p.epoch + 1}", lengths[-1] * len(range(0, total, self.comm.size)))
        mine = [
            self.evaluator.evaluate(current, lengths, self._selection, p.epoch, i)
            for i in range(self.comm.rank, total, self.comm.size)
        ]
        self._end_bar()
        evaluation = Evaluation(lengths, [row for part in self.comm.gather(mine) for row in part])
        chosen = evaluation.best_length()
        entry: dict[str, Any] = {"epoch": p.epoch + 1, "split": c.select, "best_length": chosen}
        entry |= {"lengths": list(lengths), "scores": [evaluation.summary(length) for length in lengths]}
        p.history.append(entry)
        accuracy = evaluation.mean(chosen)
        if p.best is None or accuracy > p.best["accuracy"]:
            p.best = {"accuracy": accuracy, "length": chosen, "epoch": p.epoch + 1, **self.set.snapshot()}
            if self.comm.main:
                checkpoint.save(self.folder / "best.pt", {"config": c.to_json(), **p.best})
                self._export()
        if self.reporter is not None:
            best = f"best {100 * p.best['accuracy']:.1f} at epoch {p.best['epoch']}"
            text = report.percent(accuracy, evaluation.deviation(chosen))
            self.reporter.say(f"epoch {p.epoch + 1}: {c.select} accuracy {text} % after {chosen} steps ({best})")
            self.reporter.log("evaluation", p.step, **entry, accuracy=accuracy)
            report.accuracy_plot(p.history, c.select, self.folder / "accuracy.png")
            self.reporter.board.add_images("synthetic images", self._pictures(self.set.images.detach()), p.step)

    def _export(self) -> None:
        """Write the best set as safetensors and as a picture."""
        c, best = self.config, self.progress.best
        assert best is not None
        provenance = {
            "dataset": c.dataset, "epoch": best["epoch"], "steps": best["length"], "accuracy": best["accuracy"],
            "selected_on": c.select, "config": json.loads(c.to_json()), **report.environment(self.device),
        }  # fmt: skip
        checkpoint.save_tensors(
            self.folder / "distilled.safetensors",
            {"images": best["images"], "labels": best["labels"], **self.real.preprocess.tensors()},
            {"class_names": json.dumps(self.real.class_names), "provenance": json.dumps(provenance)},
        )
        report.image_grid(self._pictures(best["images"]), self.real.class_names, self.folder / "distilled.png")

    def _pictures(self, images: Tensor) -> Tensor:
        contrast = float(self.real.train.images[:1000].std())
        return report.natural_images(images.to(self.device), self.real.preprocess, contrast)

    def _finish(self) -> dict[str, Any]:
        """The final table, made once; the test set is used only here. Ranks other than 0 return nothing."""
        c, p = self.config, self.progress
        path = self.folder / "summary.json"
        if not self.comm.main:
            return {}
        summary = report.read_summary(path)
        if summary and summary["epochs"] == c.epochs and {"distilled", *c.baselines} <= set(summary["results"]):
            return summary
        assert p.best is not None, "the last epoch is always evaluated"
        best = TrainingSet(p.best["images"].to(self.device), p.best["labels"].to(self.device), self.sampler)
        rows = {"distilled": Candidate("distilled images", [best] * c.num_train_eval, (p.best["length"],))}
        for key in c.baselines:
            rows[key] = BASELINES[key](self.real, self.sampler, c.num_train_eval, c.eval_steps, c.seed)
        self._start_bar("final report", sum(len(row.sets) * row.lengths[-1] for row in rows.values()))
        results = {}
        for key, row in rows.items():
            length, scores = self.evaluator.select_and_test(row, self._selection, self.real.test, "final", key)
            name = f"{len(row.sets[0].images):,} {row.name}"
            results[key] = {"name": name, "networks": len(row.sets), "steps": length, **scores.summary(length)}
        self._end_bar()
        summary = {
            "dataset": c.dataset, "policy": c.policy, "epochs": c.epochs, "seed": c.seed, "outer_steps": p.step,
            "results": results, "select": c.select, "best_epoch": p.best["epoch"], "seconds": self._seconds(),
            "processes": self.comm.size, **report.environment(self.device),
            "files": {
                "picture": str(self.folder / "distilled.png"), "curves": str(self.folder / "accuracy.png"),
                "distilled set": str(self.folder / "distilled.safetensors"),
            },
        }  # fmt: skip
        checkpoint.write_text(path, json.dumps(summary, indent=2) + "\n")
        return summary

    def _tick(self, steps: int) -> None:
        if self.eval_bar is not None:
            self.eval_bar.update(steps)
        self.stop.check(self.comm, collective=False)

    def _start_bar(self, text: str, total: int) -> None:
        if self.reporter is not None:
            self.eval_bar = tqdm(total=total, desc=text, unit="inner step", leave=False, dynamic_ncols=True)

    def _end_bar(self) -> None:
        if self.eval_bar is not None:
            self.eval_bar.close()
            self.eval_bar = None

    # ---- state -------------------------------------------------------------------------------------

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _save(self) -> None:
        """Write ``last.pt``: everything that changes during the run."""
        self.last_save = time.monotonic()
        if not self.comm.main:
            return
        self.progress.seconds = self._seconds()
        checkpoint.save(
            self.folder / "last.pt",
            {
                "config": self.config.to_json(),
                "progress": dataclasses.asdict(self.progress),
                "set": self.set.state_dict(),
                "policy": self.policy.state_dict(),
            },
        )


def main_worker(config: Config, comm: Comm, device: torch.device) -> int:
    """Run one worker from start to end. Returns the exit code."""
    return Run(config, comm, device).run()
