"""The executor: gives ready jobs to the cluster in as few submissions as can be, and watches over them."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

from . import direct, failure, identity
from .call import RuleCall
from .dispatch import Batch, Dispatcher
from .given import check_given
from .ledger import Ledger, LedgerError, Mark, private_folder, tidy
from .local import wait_for_end
from .resources import ResourceError, check_folder, slurm_parameters
from .slurm import SlurmAway, SlurmError
from .takeover import Takeover, TakeoverError
from .watch import Absence, Watched, failed, look, may_report

STOPPING = 10.0
"""Seconds that Ctrl-C waits for cancelled jobs to be gone."""


@dataclass
class Plan:
    """A job that is to be submitted."""

    job: Any
    mark: Mark
    parameters: dict[str, Any]
    obstacle: str | None


class Executor(RemoteExecutor):
    """Runs jobs through submitit; see the package's README for what it promises."""

    def __post_init__(self) -> None:
        # Every Snakemake imports this module, if only to list its options: submitit is for those that use it.
        from .clusters import CLUSTERS

        settings = self.workflow.executor_settings
        self.settings = settings
        self._mutex = threading.RLock()
        self._watched: dict[Any, Watched] = {}
        self._failed_batches: set[str] = set()
        self._next_question = 0.0
        self._cancelled = False
        self._absence = Absence(settings.away * 60)
        try:
            settings.check()
            self._check_options()
            folder = Path(settings.folder).expanduser().absolute()
            check_folder(folder)
            self.cluster = CLUSTERS[settings.cluster](folder.resolve(), settings.requeues)
            self.ledger = Ledger(folder)
            self.dispatcher = Dispatcher(self.cluster, self.ledger, self._absence, self.logger)
            self.takeover = Takeover(self.cluster, self.ledger, Path.cwd())
            tidy(self.ledger)
            self._check_rules()
            self._patiently(self.takeover.reconcile)
        except (ResourceError, LedgerError, SlurmError, TakeoverError) as error:
            self.wait = False
            raise WorkflowError(str(error)) from error

    def run_job(self, job: Any) -> None:
        self.run_jobs([job])

    def run_jobs(self, jobs: Sequence[Any]) -> None:
        """Submit jobs that are ready: those with equal resources in one array."""
        plans = []
        for job in jobs:
            self.run_job_pre(job)
            if plan := self._plan(job):
                plans.append(plan)
        with self._mutex:
            claims = self._patiently(lambda: self.takeover.claims([plan.mark for plan in plans]))
        batches: dict[str, list[Plan]] = defaultdict(list)
        for plan in plans:
            if claim := claims.get(plan.mark.key):
                self._adopt(plan, claim)
            else:
                batches[json.dumps(plan.parameters, sort_keys=True)].append(plan)
        if claims:
            self.logger.info(f"Took over {len(claims)} job(s) of an earlier run: they are not submitted again.")
        if batches:
            size = min(self.settings.array_size, self._patiently(self.cluster.largest_batch))
            for plans in batches.values():
                for first in range(0, len(plans), size):
                    self._submit(plans[first : first + size])

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        """Report jobs that have ended: by their own results, and only for others by what the cluster says."""
        # Snakemake starts to check before this object is complete, but has no jobs then. Unless told otherwise
        # it would then sleep for its ten seconds, however soon the first jobs end.
        if not active_jobs:
            self.next_seconds_between_status_checks = 1
            return
        self.next_seconds_between_status_checks = min(self.settings.poll_interval, max(1, len(active_jobs) / 200))
        with self._mutex:
            self.dispatcher.send_again()
        waiting = []
        for info in active_jobs:
            entry = self._watched[info.job]
            entry.result = look(entry)
            if entry.result is not None and entry.result.succeeded:
                self.report_job_success(info)
            elif entry.refused:
                self.report_job_error(info, msg=entry.refused)
            else:
                waiting.append(entry)
        states = self._ask(waiting)
        for entry in waiting:
            state = None if states is None else states.get(entry.job_id or "")
            if states is None or entry.job_id is None or not self._failed(entry, state):
                if state is not None and state.held and not entry.warned:
                    entry.warned = True
                    self.logger.warning(f"{self.cluster.noun} {entry.job_id} is {state.words}: see to it by hand.")
                yield entry.info
                continue
            log = failure.choose_log([*entry.rule_logs, *self._logs(entry)])
            blamed = entry.blamed or state
            text = failure.explain(entry.name, self.cluster.noun, entry.job_id, entry.result, blamed, log)
            if entry.loose:
                text += (
                    f"\nIt was told to stop, but may still run: see to {self.cluster.noun} {entry.job_id} by hand."
                )
            self.report_job_error(entry.info, msg=text, aux_logs=[str(path) for path in self._logs(entry)])

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel all that was submitted, or leave it, as the user has set.

        Snakemake's list lacks jobs that are being checked at this moment: ours has them.
        """
        entries = list(self._watched.values())
        if self.settings.keep_jobs or self._absence.too_long:
            self.logger.info(f"Left {len(entries)} job(s) running; the same command takes them over.")
            return
        ids = [entry.job_id for entry in entries if entry.job_id]
        try:
            if unsent := list({*self.dispatcher.unsent, *self.dispatcher.doubtful}):
                ids += [job_id for jobs in self.cluster.find(unsent).values() for _, job_id in jobs]
            with self._mutex:
                tokens = dict.fromkeys([entry.token for entry in entries])
                self.ledger.cancelled(token for token in tokens if token in self.ledger.batches)
            self.cluster.cancel(ids)
            left = wait_for_end(self.cluster, ids, STOPPING)
        except SlurmError as error:
            self.logger.error(f"{len(ids)} job(s) could not be cancelled: {error}. Later: scancel {' '.join(ids)}")
            return
        self._cancelled = True
        ended = f"; {len(left)} still stopping" if left else ""
        self.logger.info(f"Cancelled {len(ids)} job(s){ended}.")

    def handle_job_success(self, job: Any) -> None:
        """Snakemake has accepted the job's outputs: only now is it done with."""
        super().handle_job_success(job)
        self._close(job, succeeded=True)

    def handle_job_error(self, job: Any) -> None:
        super().handle_job_error(job)
        self._close(job, succeeded=False)

    def print_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs: Any) -> None:
        """Say what is known, without the general advice of the base class."""
        job_info.job.log_error(msg, external_jobid=job_info.external_jobid, **kwargs)

    def shutdown(self) -> None:
        super().shutdown()
        self.ledger.close()
        if self._watched and not self._cancelled:
            # Snakemake would now remove the empty folders that running jobs are about to write to.
            self.workflow.dag.cleanup_workdir = lambda: None

    def _check_options(self) -> None:
        options = self.workflow.remote_execution_settings
        if options.immediate_submit:
            raise WorkflowError("--immediate-submit cannot be used with the submitit executor.")
        if options.jobscript is not None:
            raise WorkflowError("--jobscript cannot be used with the submitit executor; use --precommand.")

    def _check_rules(self) -> None:
        """Find mistakes in the rules' resources before anything runs, where they can be known already."""
        seen = set()
        for job in self.workflow.dag.needrun_jobs():
            for one in job.jobs if job.is_group() else [job]:
                if one.rule.name in seen or one.is_local:
                    continue
                seen.add(one.rule.name)
                try:
                    self._parameters(one)
                except ResourceError as error:
                    raise ResourceError(f"rule {one.rule.name}: {error}") from error
                except Exception as error:  # Snakemake will say it better when the job's turn comes.
                    self.logger.debug(f"resources of rule {one.rule.name} are not known yet: {error}")

    def _parameters(self, job: Any) -> dict[str, Any]:
        check_given(job)
        limits = list(self.workflow.global_resources)
        return slurm_parameters(dict(job.resources.items()), job.threads, limits, self.settings.signal_before)

    def _plan(self, job: Any) -> Plan | None:
        """What to submit for a job; a job that cannot be is reported as failed."""
        try:
            parameters = self._parameters(job)
            obstacle = "it was asked for" if self.settings.wrapped else direct.obstacle(job, self.workflow)
            tasks = parameters["nodes"] * parameters["ntasks_per_node"]
            if tasks > 1 and obstacle is not None:
                raise ResourceError(f"{tasks} tasks can only run a shell command by itself, but {obstacle}")
            if self.settings.cluster != "slurm" and parameters["nodes"] > 1:
                raise ResourceError(f"nodes={parameters['nodes']}: there is one node without Slurm")
            if not job.is_group():
                self.workflow.async_run(job.check_protected_output())
            return Plan(job, identity.mark(job), parameters, obstacle)
        except (ResourceError, WorkflowError) as error:
            self.report_job_error(SubmittedJobInfo(job), msg=str(error))
            return None

    def _call(self, plan: Plan, folder: Path) -> RuleCall:
        job = plan.job
        common: dict[str, Any] = {
            "name": plan.mark.name,
            "folder": str(folder),
            "workdir": str(Path.cwd()),
            "variables": direct.variables(self.workflow),
            "inputs": direct.files_to_wait_for(job, self.workflow),
            "latency": self.workflow.execution_settings.latency_wait,
            "outputs": tuple(map(str, job.output)),
            "no_checkpoint": self.settings.no_checkpoint,
            "time_limit": 60 * plan.parameters["time"] if plan.parameters["time"] else None,
            "signal_before": plan.parameters["signal_delay_s"],
        }
        if plan.obstacle is None:
            tasks = plan.parameters["nodes"] * plan.parameters["ntasks_per_node"]
            return direct.direct_call(job, self.workflow, tasks, **common)
        self.logger.debug(f"{plan.mark.name} runs in a Snakemake of its own: {plan.obstacle}")
        return direct.wrapped_call(job, self, wrapped=True, **common)

    def _submit(self, plans: list[Plan]) -> None:
        with self._mutex:
            token = self.ledger.intend([plan.mark for plan in plans])
            private_folder(self.ledger.folder / token)
            entries, calls = [], []
            for index, plan in enumerate(plans):
                folder = private_folder(self.ledger.folder / token / str(index))
                calls.append(self._call(plan, folder))
                entries.append(self._watch(plan, token, index, None))
            self.dispatcher.send(token, Batch(calls, plans[0].parameters, entries))
        for entry in entries:
            if entry.refused:
                self.report_job_error(entry.info, msg=entry.refused)
            else:
                self.report_job_submission(entry.info)

    def _watch(self, plan: Plan, token: str, index: int, job_id: str | None) -> Watched:
        folder = self.ledger.folder / token / str(index)
        logs = [Path(str(path)) for path in plan.job.log]
        info = SubmittedJobInfo(plan.job, external_jobid=job_id)
        entry = Watched(plan.job, info, plan.mark.name, token, index, folder, logs, job_id)
        self._watched[plan.job] = entry
        return entry

    def _adopt(self, plan: Plan, claim: Any) -> None:
        entry = self._watch(plan, claim.token, claim.index, claim.job_id)
        self.report_job_submission(entry.info)

    def _ask(self, entries: Sequence[Watched]) -> dict[str, Any] | None:
        """Ask the cluster about jobs, in one question; None if it is too early or there was no answer.

        Raises:
            WorkflowError: the cluster has been out of reach for too long.
        """
        now = time.monotonic()
        ids = [entry.job_id for entry in entries if entry.job_id]
        # A job that says it failed is worth a question of its own: Slurm may know more.
        early = 0.8 * self.settings.poll_interval if any(entry.result for entry in entries) else 0.0
        if now < self._next_question - early or not self._absence.may_try():
            return None
        self._next_question = now + (self.settings.poll_interval if self.settings.cluster == "slurm" else 0)
        try:
            states = self.cluster.states(ids)
        except SlurmError as error:
            self._absence.begins(str(error), self.logger)
            return None
        self._absence.ends(self.logger)
        return states

    def _failed(self, entry: Watched, state: Any) -> bool:
        """Whether a job is to be reported as failed; one that still runs is stopped first."""
        # Snakemake's latency is how late the file system may show a file, and a result is one.
        grace = max(self.settings.grace, self.workflow.execution_settings.latency_wait)
        if entry.stopping is None and not failed(entry, state, grace, self.settings.away * 60):
            return False
        try:
            return may_report(entry, state, self.cluster)
        except SlurmError as error:
            self.logger.warning(f"{self.cluster.noun} {entry.job_id} could not be told to stop: {error}")
            return False

    def _patiently(self, question: Callable[[], Any]) -> Any:
        """Ask the cluster what must be known to go on, and wait while it is out of reach."""
        while True:
            try:
                answer = question()
            except SlurmAway as error:
                self._absence.begins(str(error), self.logger)
                while not self._absence.may_try():
                    time.sleep(0.5)
            except (SlurmError, TakeoverError) as error:
                raise WorkflowError(str(error)) from error
            else:
                self._absence.ends(self.logger)
                return answer

    def _logs(self, entry: Watched) -> list[Path]:
        return [path for path in self.cluster.logs(entry.token, entry.index, entry.job_id or "") if path.exists()]

    def _close(self, job: Any, succeeded: bool) -> None:
        """The job is done with: write that down, and remove its files; of a failed one its logs stay."""
        with self._mutex:
            entry = self._watched.pop(job, None)
            if entry is None:
                return
            if not succeeded:
                self._failed_batches.add(entry.token)
            if entry.loose:
                # It stays in the ledger, so that nothing is started beside it.
                return
            all_over = self.ledger.over(entry.token, [entry.index])
            if self.settings.keep_logs:
                return
            folder = self.ledger.folder / entry.token
            if all_over and entry.token not in self._failed_batches:
                shutil.rmtree(folder, ignore_errors=True)
            elif succeeded:
                shutil.rmtree(entry.folder, ignore_errors=True)
