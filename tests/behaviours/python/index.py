"""What the rows of tests/behaviours.rs ask of a function, in Python."""

import ctypes
import logging
import os
import sys
import threading
import time

if os.environ.get("PROBE_INIT") == "error":
    raise ValueError("init was told to fail")

invocations = 0
held = []


def fail(event, context):
    raise ValueError(event["message"])


def unhandled(event, context):
    # Of a thread; Python says so on stderr and goes on.
    thread = threading.Thread(target=fail, args=(event, context))
    thread.start()
    thread.join()
    return "went on"


def hold_mib(event, context):
    for _ in range(event["n"]):
        held.append(b"x" * (1 << 20))
    time.sleep(10)


def signal(event, context):
    os.kill(os.getpid(), event["n"])
    time.sleep(10)


def write(event, context):
    with open(event["path"], "w", encoding="utf-8") as file:
        file.write(event["text"])


def read(event, context):
    with open(event["path"], encoding="utf-8") as file:
        return file.read()


def print_text(event, context):
    print(event["text"], file=sys.stderr if event.get("to") == "stderr" else sys.stdout)


def tell_context(event, context):
    return {
        "name": context.function_name,
        "version": context.function_version,
        "arn": context.invoked_function_arn,
        "memory": context.memory_limit_in_mb,
        "id": context.aws_request_id,
        "group": context.log_group_name,
        "stream": context.log_stream_name,
        "left": context.get_remaining_time_in_millis(),
        "client": context.client_context.custom if context.client_context else None,
    }


BEHAVIOURS = {
    "echo": lambda event, context: event,
    "respond_bytes": lambda event, context: "x" * (event["n"] - 2),
    "error": fail,
    "unhandled": unhandled,
    "sleep": lambda event, context: time.sleep(event["ms"] / 1000),
    "hold_mib": hold_mib,
    "exit": lambda event, context: os._exit(event["n"]),
    "signal": signal,
    "global": lambda event, context: {"invocations": invocations},
    "write": write,
    "read": read,
    "log": lambda event, context: logging.getLogger().warning(event["text"]),
    "print": print_text,
    "env": lambda event, context: dict(os.environ),
    "native": lambda event, context: ctypes.CDLL("/var/task/answer.so").kiln_answer(),
    "context": tell_context,
    "path": lambda event, context: sys.path,
}


def handler(event, context):
    global invocations
    invocations += 1
    what = event.get("do", "echo") if isinstance(event, dict) else "echo"
    return BEHAVIOURS[what](event, context)
