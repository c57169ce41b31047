# SPDX-License-Identifier: Apache-2.0
"""Watching a call of C that takes a while: its progress, and signals that come meanwhile."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Union

from . import _library as c

Progress = Callable[[int, int, str], Union[bool, None]]


def text(raw: bytes | None) -> str:
    """Names come from files and need not be UTF-8."""
    return (raw or b"").decode("utf-8", "replace")


class Watcher:
    """Runs an export and turns a Python progress function into the C callback. What the function
    raises cancels the export and is raised again.

    The main thread lets another one call C and waits: signals are looked for there alone, between
    instructions of Python, and one that is looked for as a callback begins would be lost."""

    def __init__(self, progress: Progress | None):
        self.progress = progress
        self.raised: BaseException | None = None
        self.callback = c.ProgressFn(self.step)

    def step(self, done: int, total: int, tensor: bytes | None, _user: object) -> bool:
        if self.raised is not None:
            return False
        try:
            return self.progress is None or self.progress(done, total, text(tensor)) is not False
        except BaseException as e:
            self.raised = e
            return False

    def run(self, call: Callable[[], int]) -> int:
        """Calls C, and returns its status unless something was raised meanwhile."""
        if threading.current_thread() is threading.main_thread():
            status = self._wait_for(call)
        else:
            status = call()
        if self.raised is not None:
            raise self.raised
        return status

    def _wait_for(self, call: Callable[[], int]) -> int:
        results: list[int] = []
        done = threading.Event()

        def work() -> None:
            try:
                results.append(call())
            finally:
                done.set()

        with self._noting_signals():
            threading.Thread(target=work, name="quantfold").start()
            while not done.is_set():
                try:
                    done.wait()
                except BaseException as e:
                    self.raised = self.raised or e
        return results[0]

    @contextmanager
    def _noting_signals(self) -> Iterator[None]:
        """What handlers of signals raise is noted, wherever the main thread is, and not thrown: it
        would leave here, and free what C works on."""
        handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

        def note(number: int, frame: FrameType | None) -> None:
            try:
                handlers[number](number, frame)
            except BaseException as e:
                self.raised = self.raised or e

        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                signal.signal(number, note)
        try:
            yield
        finally:
            for taken, handler in handlers.items():
                signal.signal(taken, handler)


@contextmanager
def bar(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """True means tqdm's bar, if tqdm is installed."""
    if progress is None or progress is False:
        yield None
        return
    if callable(progress):
        yield progress
        return
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]
    except ImportError:
        yield None
        return
    with tqdm(unit="B", unit_scale=True, desc="quantfold") as shown:

        def show(done: int, total: int, tensor: str) -> None:
            shown.total = total
            shown.set_postfix_str(tensor[-40:], refresh=False)
            shown.update(done - shown.n)

        yield show
