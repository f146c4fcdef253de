"""The evaluator ``lm-eval``."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import attrs
from packaging.version import Version

from permllm.components import Evaluator, option
from permllm.contexts.evaluation import EvaluationContext
from permllm.errors import UserError
from permllm_lm_eval.figures import check_metrics, figures_of
from permllm_lm_eval.task_data import check_data
from permllm_lm_eval.task_files import Found, find_tasks

OLDEST, TOO_NEW = "0.4.12", "0.5"
"""The versions of the harness that this works with: from, and below."""

MAX_SEED = 2**32 - 1
"""The largest seed that NumPy takes."""


@attrs.frozen
class LmEval(Evaluator):
    """Tasks of EleutherAI's lm-evaluation-harness.

    The model in memory answers the harness's requests, and the figures are those that the
    harness computes: ``lm-eval/<task>/<metric>``. Of a group that the harness averages,
    only the averages are given. Tasks are the harness's own and those of the task files in
    ``task_folders``. Log-probabilities are computed in float32, whatever the weights are.
    """

    name: ClassVar[str] = "lm-eval"
    compares: ClassVar[bool] = False
    # Tasks read data that no option names, so that a change of it could not be seen.
    repeatable: ClassVar[bool] = False

    tasks: tuple[str, ...] = option(help="names of tasks, groups or tags of the harness")
    task_folders: tuple[Path, ...] = option(
        (), help="folders with task files (*.yaml), which come before the harness's own"
    )
    few_shot: int | None = option(
        None, help="examples before each question; null for each task's own number", minimum=0
    )
    limit: int | None = option(
        None, help="use the first questions of each task only; null for all", minimum=1
    )
    metrics: tuple[str, ...] = option((), help="give only these, such as acc_norm; empty for all")
    batch_size: int | None = option(
        None, help="sequences per forward pass; null for the calibration's", minimum=1
    )
    add_bos_token: bool | None = option(
        None, help="begin texts with the beginning-of-text token; null: as the tokenizer does"
    )
    seed: int | None = option(
        None,
        help="of examples and of all random numbers; null for the harness's own seeds",
        minimum=0,
        maximum=MAX_SEED,
    )
    download: bool = option(
        False, help="let data sets be fetched that are not on this machine; else no network"
    )

    def __attrs_post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks must name a task")
        for index, task in enumerate(self.tasks):
            if task in self.tasks[:index]:
                raise ValueError(f"tasks names '{task}' twice")

    def check(self) -> None:
        """Whether the tasks are known and their data on this machine, as far as files say."""
        self._find()

    def evaluate(self, model: Any, tokenizer: Any, context: EvaluationContext) -> dict[str, float]:
        """``lm-eval/<task>/<metric>``, and its ``/stderr`` where the harness gives one.

        Raises:
            UserError: a task is not known, is broken, or needs what is not here.
            RunFailed: the model's logits are not finite.
        """
        wanted = self._find()
        # Late: it brings in torch.
        from permllm_lm_eval import surroundings

        shown = attrs.evolve(context, progress=surroundings.aloud(context.progress))
        with (
            nullcontext() if self.download else surroundings.offline(),
            # Metrics are resampled in this process, not in copies of it.
            surroundings.kept_environment(DISABLE_MULTIPROC="1"),
            surroundings.seeded(self.seed),
            surroundings.quiet() as errors,
        ):
            return self._measure(wanted, errors, model, tokenizer, shown)

    def _measure(
        self,
        wanted: Found,
        errors: list[str],
        model: Any,
        tokenizer: Any,
        context: EvaluationContext,
    ) -> dict[str, float]:
        """The figures, in surroundings where the harness may do as it likes."""
        try:
            # Late: the harness takes seconds to import.
            from permllm_lm_eval import harness
            from permllm_lm_eval.model import InMemoryModel
        except ImportError as error:
            raise UserError(
                f"lm-eval cannot be imported: {error}",
                hint="pip install --upgrade permllm-lm-eval",
            ) from error
        loaded = harness.load_tasks(wanted, self.task_folders, errors)
        harness.set_shots(loaded.tasks, self.few_shot, self.seed)
        wrapped = InMemoryModel(
            model,
            tokenizer,
            batch_size=self.batch_size or context.batch_size,
            add_bos_token=self.add_bos_token,
            progress=context.progress,
        )
        results = harness.run(wrapped, loaded, limit=self.limit)
        return figures_of(results, loaded.reported, shots=self.few_shot, metrics=self.metrics)

    def _find(self) -> Found:
        check_version()
        wanted = find_tasks(self.tasks, self.task_folders)
        for name, file in wanted.files.items():
            if file is not None:
                check_data(name, file, download=self.download)
        told = [file.metrics() if file else None for file in wanted.files.values()]
        known = [each for each in told if each is not None]
        if len(known) == len(told):
            check_metrics(self.metrics, set().union(*known))
        return wanted


def check_version() -> None:
    """Whether the harness is one that this works with.

    Raises:
        UserError: it is missing, too old or too new.
    """
    wanted = f"lm-eval>={OLDEST},<{TOO_NEW}"
    hint = f"pip install '{wanted}'"
    try:
        found = version("lm-eval")
    except PackageNotFoundError:
        raise UserError("the evaluator lm-eval needs the package lm-eval", hint=hint) from None
    if not Version(OLDEST) <= Version(found) < Version(TOO_NEW):
        raise UserError(f"the evaluator lm-eval needs {wanted}, not {found}", hint=hint)
