"""The controller of the transcriber: tasks in JSON, their audio in binary messages, results while it streams.

A connection takes one task after the other. Whatever is wrong with a task fails that task, in words, and leaves the
connection open for the next.
"""

from __future__ import annotations

import json
from typing import Any

from krait_ws.websockets import WebsocketsCtrlBase

from ._recognition import FORMATS, Recognition

MODELS = ("paraformer-realtime-v1", "paraformer-realtime-v2", "paraformer-realtime-8k-v1", "paraformer-realtime-8k-v2")
IDLE_TIMEOUT = 60.0  # seconds without a message; then the connection is closed
MAX_TASK_BYTES = 64 << 20  # of audio: half an hour of 16 bits at 16 kHz


class TaskError(Exception):
    """A task cannot begin, or cannot go on. Carries what its client is told."""

    def __init__(self, code: str, message: str, task_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.task_id = task_id


class Transcriber(WebsocketsCtrlBase):
    """Runs the tasks of one connection."""

    max_message_size = 1 << 20  # bytes: half a minute of audio

    def __init__(self) -> None:
        super().__init__()
        self.task_id: str | None = None
        self.recognition: Recognition | None = None
        self.skips_audio = False  # of a task that has failed: some is still on its way

    def on_thread_start(self) -> None:
        """Takes messages as they come; closes when none does for long."""
        while not self.should_stop():
            message = self.pop_in_message(timeout=IDLE_TIMEOUT)
            try:
                if message is None:
                    self.close_idle()
                elif isinstance(message, bytes):
                    self.hear(message)
                else:
                    self.obey(message)
            except TaskError as error:
                self.tell_failure(error)

    def hear(self, audio: bytes) -> None:
        """Audio of the running task."""
        if self.skips_audio:
            return
        if self.recognition is None:
            self.skips_audio = True  # one answer is enough
            raise TaskError("InvalidParameter", "audio came before run-task")
        if self.recognition.bytes_in + len(audio) > MAX_TASK_BYTES:
            raise self.failure("AudioTooLong", f"a task takes at most {MAX_TASK_BYTES:,} bytes of audio")
        self.tell_result(self.recognition.hear(audio))

    def obey(self, text: str) -> None:
        """Begins a task, or ends the running one."""
        action, task_id, payload = read_command(text)
        if action == "run-task":
            if self.recognition is not None:
                raise TaskError("TaskRunning", f"the task {self.task_id} is running: finish it first", task_id)
            self.recognition = new_recognition(task_id, payload)
            self.task_id = task_id
            self.skips_audio = False
            self.tell("task-started", task_id)
        elif action == "finish-task":
            if self.recognition is None or task_id != self.task_id:
                raise TaskError("UnknownTask", "no such task is running", task_id)
            self.tell_result(self.recognition.finish())
            self.recognition = None
            self.tell("task-finished", task_id)
        else:
            raise TaskError("InvalidParameter", "header.action is run-task or finish-task", task_id)

    def close_idle(self) -> None:
        """Nothing came for long, or the connection is over."""
        if self.recognition is not None:
            self.tell_failure(self.failure("Timeout", f"no audio came for {IDLE_TIMEOUT:g} s"))
        self.close(1000, f"nothing came for {IDLE_TIMEOUT:g} s")

    def failure(self, code: str, message: str) -> TaskError:
        """Ends the running task; what to raise."""
        self.recognition = None
        self.skips_audio = True
        return TaskError(code, message, self.task_id)

    def tell_failure(self, error: TaskError) -> None:
        """Sends what is wrong."""
        self.tell("task-failed", error.task_id, error_code=error.code, error_message=error.message)

    def tell_result(self, sentence: dict[str, Any] | None) -> None:
        """Sends what was understood, if there is something."""
        if sentence is not None:
            self.tell("result-generated", self.task_id, {"output": {"sentence": sentence}})

    def tell(self, event: str, task_id: str | None, payload: dict[str, Any] | None = None, **header: str) -> None:
        """Sends an event of a task."""
        whole_header = {"task_id": task_id, "event": event, **header, "attributes": {}}
        self.push_out_message(json.dumps({"header": whole_header, "payload": payload or {}}))


def read_command(text: str) -> tuple[str, str, dict[str, Any]]:
    """Action, task id and payload of a command.

    Raises:
        TaskError: It is none.
    """
    try:
        command = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: "[[[[..." nested too deep
        raise TaskError("InvalidParameter", "a text message must be JSON") from None
    match command:
        case {"header": {"action": str(action), "task_id": str(task_id)}, "payload": dict(payload)}:
            if 1 <= len(task_id) <= 64 and task_id.isprintable():
                return action, task_id, payload
    raise TaskError("InvalidParameter", "a command has header.action, header.task_id (1 to 64 characters) and payload")


def new_recognition(task_id: str, payload: dict[str, Any]) -> Recognition:
    """What a task asks for.

    Raises:
        TaskError: It asks for something that there is not.
    """
    if payload.get("model") not in MODELS:
        raise TaskError("ModelNotFound", f"payload.model is one of {', '.join(MODELS)}", task_id)
    match payload.get("parameters"):
        case {"format": str(audio_format), "sample_rate": int(sample_rate)}:
            if audio_format in FORMATS and 8000 <= sample_rate <= 48_000:
                return Recognition(audio_format, sample_rate)
    wanted = f"format ({', '.join(FORMATS)}) and sample_rate (8000 to 48000)"
    raise TaskError("InvalidParameter", f"payload.parameters has {wanted}", task_id)
