"""What processes take of the machine: memory, processor time, open files, read at each scrape."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_LABELS = ["process"]


class ProcessCollector(Collector):
    """Of this process and of those that it started. `process` is what they are for: a few words of
    this program."""

    def __init__(
        self,
        own: str,
        started: Callable[[], Mapping[str, Sequence[int]]] = dict[str, Sequence[int]],
    ) -> None:
        """`started`: numbers of processes, by what they are for. One that has ended counts
        nothing."""
        self._own = own
        self._started = started

    def collect(self) -> Iterable[Metric]:
        """Sums of the processes of each name."""
        memory = GaugeMetricFamily(
            "onesearch_process_resident_memory_bytes",
            "Resident memory, shared pages included",
            labels=_LABELS,
        )
        seconds = CounterMetricFamily(
            "onesearch_process_cpu_seconds", "Processor time, user and system", labels=_LABELS
        )
        files = GaugeMetricFamily(
            "onesearch_process_open_files", "Open file descriptors", labels=_LABELS
        )
        alive = GaugeMetricFamily("onesearch_processes", "Processes that run", labels=_LABELS)
        for name, numbers in ({self._own: [os.getpid()]} | dict(self._started())).items():
            found = [taken for number in numbers if (taken := _taken(number)) is not None]
            alive.add_metric([name], len(found))
            memory.add_metric([name], sum(one[0] for one in found))
            seconds.add_metric([name], sum(one[1] for one in found))
            files.add_metric([name], sum(one[2] for one in found))
        return memory, seconds, files, alive


def _taken(number: int) -> tuple[int, float, int] | None:
    """Bytes, seconds and files of a process; None where it has ended."""
    try:
        process = psutil.Process(number)
        with process.oneshot():
            times = process.cpu_times()
            return process.memory_info().rss, times.user + times.system, process.num_fds()
    except psutil.Error:
        return None
