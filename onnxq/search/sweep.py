"""The sweep: the effect of each setting of each layer, with all other layers in float.

The part before a layer is computed once for all its settings; a candidate runs only the part that
its weight can reach. Float64 sums of fixed micro-batches are added in order, so any number of cores
gives the same table.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import onnx_ir as ir
import psutil

from onnxq.errors import DataError, ModelError
from onnxq.forms.variant import Variant
from onnxq.graph.facts import values_by_name
from onnxq.graph.meanings import decides
from onnxq.options.table import AUTO, Task
from onnxq.plan.spec import LayerSpec, Plan
from onnxq.progress import Progress, Silent
from onnxq.runtime.costs import count_for, current_costs
from onnxq.runtime.dataset import Samples
from onnxq.runtime.session import Arrays, SessionPool, available_cores, expose
from onnxq.search.effects import Candidates, EffectMeter, Floats, Suffix
from onnxq.search.table import FLOAT, Effect, Row, Setting, SweepTable
from onnxq.student.qparams import QParams
from onnxq.student.student import Student
from onnxq.train.objective import find_logits
from onnxq.train.teacher import MICRO_BATCH

SAMPLES = 256
"""Most samples: one standard error of a drop is then a fraction of a point."""

LEAST_SAMPLES = 2
"""Least samples: a standard error needs two."""

FREE_SHARE = 4
"""Divisor of the free memory that a group's sessions may take, and also a chunk."""

MOST_BYTES = 2**31
"""Upper limit of that, in bytes: more would hardly be faster."""

SESSION_COPIES = 2
"""Copies of its weights that a session holds: the stored ones, and those packed for kernels."""

DENSE_BYTES = 12
"""Bytes per weight needed to fit a candidate, about."""


def sweep(
    model: ir.Model,
    student: Student,
    qparams: QParams,
    samples: Samples,
    *,
    codebooks: bool = True,
    calibration: str = "mse",
    task: Task = AUTO,
    batch_size: int = MICRO_BATCH,
    limit: int = SAMPLES,
    progress: Progress | None = None,
    workers: int | None = None,
) -> SweepTable:
    """Try every setting of every weight on the float model, one weight at a time.

    Args:
        model: the normalised float model; it isn't changed.
        student: its student, whose plan names the layers.
        qparams: the student's quantization parameters; thresholds and mean inputs are read.
        samples: unlabelled samples, best held-out ones.
        codebooks: whether codebooks are tried beside integer weights.
        calibration: the calibration method of integer weights.
        task: what the outputs are for; 'auto' finds it from the model.
        batch_size: samples in one run, where the model doesn't fix it.
        limit: most samples to use.
        progress: told how many runs are done.
        workers: threads; None means one per core. The result does not depend on it.

    Raises:
        ModelError: the plan has no layer, or the model no float output.
        DataError: there are too few samples.
    """
    groups = by_weight(student.plan)
    if not groups:
        raise ModelError("the model has no layer to try: every one is left in float")
    names = find_logits(model)
    if not names:
        raise ModelError("the model has no float output, so that nothing can be compared")
    compared = expose(model, names)
    trials = [
        LayerTrial(
            Candidates(student, qparams, group, codebooks=codebooks, calibration=calibration),
            Suffix(compared, group),
        )
        for group in groups
    ]
    decisive = decides(values_by_name(model.graph)[names[0]], task)
    run = Sweep(compared, trials, _chosen(samples, limit), batch_size, decides=decisive)
    return run.table(progress or Silent(), workers or available_cores())


def sweep_variant(
    variant: Variant, samples: Samples, batch_size: int, progress: Progress, *, synthetic: bool
) -> SweepTable:
    """`sweep` for a variant, with the settings that its recipe leaves open.

    Args:
        variant: a form of the model, quantized.
        samples: as of `sweep`.
        batch_size: samples in one run.
        progress: told how many runs are done.
        synthetic: whether the samples are synthetic.
    """
    recipe = variant.recipe
    table = sweep(
        variant.model,
        variant.student,
        variant.qparams,
        samples,
        codebooks=recipe.codebook == AUTO,
        calibration=recipe.calibration,
        task=recipe.task,
        batch_size=batch_size,
        progress=progress,
    )
    return replace(table, synthetic=synthetic)


def by_weight(plan: Plan) -> list[tuple[LayerSpec, ...]]:
    """The layers of each weight, in graph order."""
    groups: dict[str, list[LayerSpec]] = {}
    for spec in plan.layers.values():
        groups.setdefault(spec.weight, []).append(spec)
    return [tuple(group) for group in groups.values()]


def _chosen(samples: Samples, limit: int) -> Samples:
    """At most so many samples, in whole batches where the model fixes the batch."""
    group = samples.batch or 1
    count = min(limit, samples.count) // group * group or min(group, samples.count)
    if count < max(LEAST_SAMPLES, group):
        raise DataError(
            f"{samples.count} of the samples are held out, and settings need "
            f"{max(LEAST_SAMPLES, group)} to be tried on; give more samples"
        )
    return samples.take(count)


@dataclass(frozen=True)
class LayerTrial:
    """One weight under trial.

    Attributes:
        candidates: its settings.
        suffix: the part of the model that it can reach.
        sums: the sums of each batch so far, in order, by setting.
    """

    candidates: Candidates
    suffix: Suffix
    sums: dict[Setting, list[Floats]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of memory between `open` and `close`, about."""
        indices = self.candidates.layers[0].parameters * len(self.candidates.settings)
        return SESSION_COPIES * self.suffix.nbytes + indices

    def open(self) -> None:
        """Fit the codebooks and open the session."""
        self.candidates.fit()
        self.suffix.open()

    def close(self) -> None:
        """Release codebooks and session."""
        self.candidates.forget()
        self.suffix.close()

    def run(self, setting: Setting, batches: Sequence[Arrays], meter: EffectMeter) -> list[Floats]:
        """The sums of some batches under one setting."""
        parameters = self.candidates.parameters(setting)
        return [meter.sums(batch, self.suffix.run(parameters, batch)) for batch in batches]


class Sweep:
    """Runs trials: weights in groups and batches in chunks, as many as fit into memory.

    A candidate is fitted once for each chunk, and the teacher runs once for each group.

    Args:
        teacher: the float model whose outputs are the compared tensors.
        trials: one for each weight.
        samples: the samples to try them on.
        batch_size: samples in one run.
        decides: whether the compared tensor may hold classes.
    """

    def __init__(
        self,
        teacher: ir.Model,
        trials: Sequence[LayerTrial],
        samples: Samples,
        batch_size: int,
        *,
        decides: bool = True,
    ) -> None:
        self._trials, self._samples, self._decides = trials, samples, decides
        self._batch_size = samples.batch or batch_size
        self._compared = [str(value.name) for value in teacher.graph.outputs]
        given = {value.name for value in teacher.graph.inputs}
        cuts = [name for trial in trials for name in trial.suffix.inputs if name not in given]
        # One graph for all groups: which tensors are its outputs decides what is fused.
        self._tensors = list(dict.fromkeys([*self._compared, *cuts]))
        self._session = SessionPool(expose(teacher, self._tensors), workers=1)
        self._budget = min(psutil.virtual_memory().available // FREE_SHARE, MOST_BYTES)
        self._judge: EffectMeter | None = None

    def table(self, progress: Progress, workers: int) -> SweepTable:
        """Run all trials; the rows are in graph order."""
        largest = max(trial.candidates.layers[0].parameters for trial in self._trials)
        workers = min(workers, max(1, self._budget // (DENSE_BYTES * largest)))
        executor = ThreadPoolExecutor(workers, initializer=count_for, initargs=(current_costs(),))
        batches = -(-self._samples.count // self._batch_size)
        settings = sum(len(trial.candidates.settings) for trial in self._trials)
        progress.start("try each layer alone", settings * batches)
        try:
            self._try_all(executor, workers, progress)
        finally:
            # After Ctrl-C, what has not begun never will.
            executor.shutdown(cancel_futures=True)
        progress.finish()
        assert self._judge is not None
        rows = tuple(self._row(trial, self._judge) for trial in self._trials)
        return SweepTable(rows, self._judge.measure, self._samples.count)

    def _try_all(self, executor: ThreadPoolExecutor, workers: int, progress: Progress) -> None:
        done = 0
        for group in self._groups():
            for opened in [executor.submit(trial.open) for trial in group]:
                opened.result()
            for chunk in self._chunks(executor, workers, group):
                for trial, setting, future in self._submit(executor, group, chunk):
                    trial.sums.setdefault(setting, []).extend(future.result())
                    done += len(chunk)
                    progress.at(done, trial.candidates.layers[0].name)
            for trial in group:
                trial.close()

    def _groups(self) -> Iterator[list[LayerTrial]]:
        """Neighbouring trials whose sessions and codebooks fit into the budget, at least one."""
        group: list[LayerTrial] = []
        for trial in self._trials:
            if group and sum(each.nbytes for each in [*group, trial]) > self._budget:
                yield group
                group = []
            group.append(trial)
        yield group

    def _chunks(
        self, executor: ThreadPoolExecutor, workers: int, group: Sequence[LayerTrial]
    ) -> Iterator[list[Arrays]]:
        """The tensors that a group reads, as many batches at once as fit into the memory budget."""
        needed = {name for trial in group for name in trial.suffix.inputs} | set(self._compared)
        wanted = [name for name in self._tensors if name in needed]
        chunk: list[Arrays] = []
        size = 0
        for batch in self._teacher_batches(executor, workers, wanted):
            tensors = {name: array for name, array in batch.items() if name in needed}
            chunk.append(tensors)
            size += sum(array.nbytes for array in tensors.values())
            if size > self._budget:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _teacher_batches(
        self, executor: ThreadPoolExecutor, workers: int, wanted: Sequence[str]
    ) -> Iterator[Arrays]:
        """Inputs and tensors of the float model, batch by batch, computed a few batches ahead."""
        pending: deque[tuple[Arrays, Future[Arrays]]] = deque()

        def next_batch() -> Arrays:
            feeds, future = pending.popleft()
            return {**feeds, **future.result()}

        for feeds in self._samples.batches(self._batch_size):
            pending.append((feeds, executor.submit(self._session.run, feeds, wanted)))
            if len(pending) > workers:
                yield next_batch()
        while pending:
            yield next_batch()

    def _submit(
        self, executor: ThreadPoolExecutor, group: Sequence[LayerTrial], chunk: list[Arrays]
    ) -> list[tuple[LayerTrial, Setting, Future[list[Floats]]]]:
        if self._judge is None:
            count = min(self._batch_size, self._samples.count)
            self._judge = EffectMeter(self._compared, chunk[0], count, decides=self._decides)
        return [
            (trial, setting, executor.submit(trial.run, setting, chunk, self._judge))
            for trial in group
            for setting in trial.candidates.settings
        ]

    def _row(self, trial: LayerTrial, meter: EffectMeter) -> Row:
        candidates = trial.candidates
        count = self._samples.count
        effects = {
            setting: meter.effect(sum(trial.sums[setting][1:], trial.sums[setting][0]), count, size)
            for setting, size in candidates.settings.items()
        }
        drop = 0.0 if meter.measure == "kl" else None
        effects[FLOAT] = Effect(candidates.float_size, 0.0, drop, drop)
        names = tuple(spec.name for spec in candidates.layers)
        return Row(names, candidates.layers[0].parameters, effects)
