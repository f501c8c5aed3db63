"""Invoke: what goes in, what comes out, and what is told when it does not."""

import base64
import io
import json
import re
import threading

from checks import ARN, check, equal, zip_of


def log(answer):
    return base64.b64decode(answer["LogResult"]).decode()


@check
def a_payload_comes_back_byte_for_byte(kiln):
    kiln.create("f", MemorySize=1792, Timeout=30)
    for payload in [b' {"do": "echo",\n "a": "\xc3\xbc \xf0\x9f\xa6\x80"} ', b"null", b"0", b'"x"', b"[]"]:
        answer = kiln.invoke("f", Payload=payload)
        equal((answer["StatusCode"], answer["ExecutedVersion"], answer["payload"]), (200, "$LATEST", payload))
        assert "FunctionError" not in answer and "LogResult" not in answer
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        equal((headers["content-type"], headers["x-amzn-remapped-content-length"]), ("application/json", "0"))
        assert headers["x-amzn-trace-id"].startswith("Root=1-") and "date" in headers
    equal(kiln.invoke("f")["payload"], b"{}")
    equal(kiln.invoke("f", Payload=io.BytesIO(b'{"do":"echo"}'))["payload"], b'{"do":"echo"}')
    large = b'"' + b"x" * (6291456 - 2) + b'"'
    assert kiln.invoke("f", Payload=large)["payload"] == large


@check
def what_the_function_sees_is_what_was_sent(kiln):
    kiln.create("f")
    client_context = {"client": {"app_title": "ü"}, "custom": {"k": "v"}, "env": {}}
    encoded = base64.b64encode(json.dumps(client_context).encode()).decode()
    answer = kiln.invoke("f", {"do": "headers"}, ClientContext=encoded)
    seen = json.loads(answer["payload"])
    equal(seen["lambda-runtime-aws-request-id"], answer["ResponseMetadata"]["RequestId"])
    equal(json.loads(seen["lambda-runtime-client-context"]), client_context)
    equal(seen["lambda-runtime-invoked-function-arn"], f"{ARN}:f")
    assert re.fullmatch(r"Root=1-[0-9a-f]{8}-[0-9a-f]{24};Parent=[0-9a-f]{16};Sampled=0", seen["lambda-runtime-trace-id"]), seen
    assert "lambda-runtime-client-context" not in json.loads(kiln.invoke("f", {"do": "headers"})["payload"])
    kiln.create_node("g", MemorySize=256)
    seen = json.loads(kiln.invoke("g", {"a": [1]}, ClientContext=encoded, Qualifier="$LATEST")["payload"])
    equal((seen["event"], seen["arn"], seen["client"]["custom"], seen["memory"]), ({"a": [1]}, f"{ARN}:g:$LATEST", {"k": "v"}, "256"))


@check
def a_dry_run_runs_nothing(kiln):
    kiln.create("f")
    answer = kiln.client.invoke(FunctionName="f", InvocationType="DryRun", Payload=b"{}")
    equal((answer["StatusCode"], answer["Payload"].read()), (204, b""))
    assert "ExecutedVersion" not in answer and "x-amzn-trace-id" in answer["ResponseMetadata"]["HTTPHeaders"]
    assert b'"invocations":1' in kiln.invoke("f", {"do": "global"})["payload"]
    with kiln.refused("ResourceNotFoundException", 404, f"Function not found: {ARN}:nope:$LATEST"):
        kiln.client.invoke(FunctionName="nope", InvocationType="DryRun")


@check
def the_tail_is_the_invocations_log_from_start_to_report(kiln):
    kiln.create("f")
    answer = kiln.invoke("f", {"do": "print", "text": "hello, ü"}, LogType="Tail")
    request = answer["ResponseMetadata"]["RequestId"]
    lines = log(answer).splitlines()
    equal(lines[:3], [f"START RequestId: {request} Version: $LATEST", "hello, ü", f"END RequestId: {request}"])
    pattern = (rf"REPORT RequestId: {request}\tDuration: \d+\.\d\d ms\tBilled Duration: \d+00 ms\tMemory Size: 128 MB\t"
               r"Max Memory Used: \d+ MB\tInit Duration: \d+\.\d\d ms\t")
    assert re.fullmatch(pattern, lines[3]) and len(lines) == 4, lines
    assert "Init Duration" not in log(kiln.invoke("f", {"do": "echo"}, LogType="Tail")), "warm"
    long = kiln.invoke("f", {"do": "print", "text": "x" * 99, "times": 100}, LogType="Tail")
    tail = base64.b64decode(long["LogResult"])
    assert len(tail) == 4096 and tail.decode().splitlines()[-1].startswith("REPORT RequestId: "), tail[-200:]


@check
def an_error_of_the_handler_is_its_own(kiln):
    kiln.create_node("f")
    answer = kiln.invoke("f", {"fail": "no ü"}, LogType="Tail")
    told = json.loads(answer["payload"])
    equal((answer["StatusCode"], answer["FunctionError"], answer["ExecutedVersion"]), (200, "Unhandled", "$LATEST"))
    equal((told["errorMessage"], told["errorType"], isinstance(told["stackTrace"], list)), ("no ü", "TypeError", True))
    assert log(answer).splitlines()[-1].endswith(" MB\tInit Duration: " + re.search(r"Init Duration: (.*? ms)\t", log(answer))[1] + "\t")
    equal(kiln.invoke("f", "nothing")["payload"], b"null")
    kiln.create("g")
    answer = kiln.invoke("g", {"do": "error", "type": "Mine", "message": "m"})
    equal((answer["FunctionError"], json.loads(answer["payload"])["errorMessage"]), ("Unhandled", "m"))


@check
def each_end_of_a_function_is_named(kiln):
    kiln.create("f", Timeout=30)
    kiln.create("late", Timeout=1)
    killed = "RequestId: <id> Error: Runtime exited with error: signal: killed"
    for event, kind, message, report in [
        ({"sleep": 25000}, "Sandbox.Timedout", "RequestId: <id> Error: Task timed out after 1.00 seconds", "Status: timeout"),
        ({"exit": 7}, "Runtime.ExitError", "RequestId: <id> Error: Runtime exited with error: exit status 7",
         "Status: error\tError Type: Runtime.ExitError"),
        ({"exit": 0}, "Runtime.ExitError", "RequestId: <id> Error: Runtime exited without providing a reason",
         "Status: error\tError Type: Runtime.ExitError"),
        ({"signal": 11}, "Runtime.ExitError", "RequestId: <id> Error: Runtime exited with error: signal: segmentation fault",
         "Status: error\tError Type: Runtime.ExitError"),
        ({"hold_mib": 1000}, "Runtime.ExitError", killed, "Status: error\tError Type: Runtime.OutOfMemory"),
        ({"respond_bytes": 6291557}, "Function.ResponseSizeTooLarge",
         "Response payload size exceeded maximum allowed payload size (6291556 bytes).", None),
    ]:
        answer = kiln.invoke("late" if "sleep" in event else "f", event, LogType="Tail")
        message = message.replace("<id>", answer["ResponseMetadata"]["RequestId"])
        equal((answer["StatusCode"], answer["FunctionError"]), (200, "Unhandled"))
        equal(answer["payload"].decode(), json.dumps({"errorType": kind, "errorMessage": message}, separators=(",", ":")))
        if report:
            assert log(answer).splitlines()[-1].endswith(f"\t{report}"), log(answer)
    equal(len(kiln.invoke("f", {"respond_bytes": 6291556})["payload"]), 6291556)


@check
def a_failed_init_is_told_to_who_invokes(kiln):
    text = "RequestId: <id> Error: Runtime exited with error: exit status 3"
    kiln.create("exits", Environment={"Variables": {"PROBE_INIT": "exit:3"}})
    answer = kiln.invoke("exits", {})
    wanted = {"errorType": "Runtime.ExitError", "errorMessage": text.replace("<id>", answer["ResponseMetadata"]["RequestId"])}
    equal((answer["FunctionError"], json.loads(answer["payload"])), ("Unhandled", wanted))
    kiln.create("says", Environment={"Variables": {"PROBE_INIT": "error"}})
    told = json.loads(kiln.invoke("says", {})["payload"])
    equal((told["errorType"], told["errorMessage"]), ("Probe.Init", "the probe was told to fail its init"))
    kiln.create("none", zip_of({"main.txt": "x"}))
    told = json.loads(kiln.invoke("none", {})["payload"])
    equal(told["errorType"], "Runtime.InvalidEntrypoint")
    assert told["errorMessage"].endswith("Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]"), told
    kiln.create("node", zip_of({"index.js": "x("}), Runtime="nodejs8.10", Handler="index.handler")
    answer = kiln.invoke("node", {})
    equal(answer["FunctionError"], "Unhandled")
    assert json.loads(answer["payload"])["errorType"] in ("Runtime.UserCodeSyntaxError", "SyntaxError"), answer["payload"]


@check
def a_request_that_cannot_run_is_refused_in_lambdas_words(kiln):
    kiln.create("f")
    content = "InvalidRequestContentException"
    prefix = "Could not parse request body into json: Could not parse payload into json: …"
    for payload in [b"{", b"{'a':1}", b'"\xff"', b"{}{}"]:
        with kiln.refused(content, 400, prefix):
            kiln.client.invoke(FunctionName="f", Payload=payload)
    for context in ["§", base64.b64encode(b"[1]").decode(), base64.b64encode(b"no").decode()]:
        with kiln.refused(content, 400, "Client context must be a valid Base64-encoded JSON object."):
            kiln.careless.invoke(FunctionName="f", ClientContext=context.encode("ascii", "replace").decode())
    with kiln.refused(content, 400, "Client context must be at most 3583 bytes"):
        kiln.careless.invoke(FunctionName="f", ClientContext="A" * 3584)
    with kiln.refused("RequestTooLargeException", 413, "Request must be smaller than 6291456 bytes for the InvokeFunction operation"):
        kiln.client.invoke(FunctionName="f", Payload=b'"' + b"x" * (6291456 - 1) + b'"')
    set_ = "failed to satisfy constraint: Member must satisfy enum value set: "
    with kiln.refused("ValidationException", 400, f"2 validation errors detected: Value 'Later' at 'invocationType' {set_}"
                      f"[Event, RequestResponse, DryRun]; Value 'Head' at 'logType' {set_}[None, Tail]"):
        kiln.careless.invoke(FunctionName="f", InvocationType="Later", LogType="Head")
    with kiln.refused("ResourceNotFoundException", 404, f"Function not found: {ARN}:nope:$LATEST"):
        kiln.client.invoke(FunctionName="nope", Payload=b"{")


@check
def calls_at_once_run_at_once(kiln):
    kiln.create("f", Timeout=30)
    starts, lock = [], threading.Lock()

    def call():
        seen = json.loads(kiln.invoke("f", {"steps": [{"do": "global"}, {"sleep": 1500}]})["payload"])
        with lock:
            starts.append(seen[0]["start"])

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal((len(starts), len(set(starts))), (6, 6))
