"""One check is one function under `@check`. They run one after another, each on an instance without functions, and each
prints one line: `ok MODULE.NAME`, or `FAILED MODULE.NAME` and why. tests/boto3.rs counts them."""

import contextlib
import hashlib
import http.client
import io
import json
import socket
import sys
import time
import traceback
import zipfile
from base64 import b64encode

from botocore.exceptions import ClientError

import adapter

ARN = "arn:aws:lambda:us-east-1:000000000000:function"
ROLE = "arn:aws:iam::000000000000:role/r"

NODE = """
exports.handler = (event, context, callback) => {
  if (event && event.fail) return callback(new TypeError(event.fail));
  if (event === 'nothing') return callback();
  callback(null, { event, id: context.awsRequestId, arn: context.invokedFunctionArn, client: context.clientContext,
                   memory: context.memoryLimitInMB, variable: process.env.VARIABLE });
};
"""

_all = []


def check(function):
    _all.append(function)
    return function


class Kiln:
    """An instance, seen by its clients."""

    def __init__(self, path, probe):
        self.path = path
        self.client = adapter.client(path)
        # What botocore itself would refuse goes out all the same: it is the server that is asked here.
        self.careless = adapter.client(path, parameter_validation=False)
        self.exceptions = self.client.exceptions
        self.probe_zip = probe

    def create(self, name, zip_file=None, **settings):
        """A function of the probe, ready to be invoked."""
        made = self.client.create_function(**{**self.settings(name, zip_file), **settings})
        self.client.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.05})
        return made

    def settings(self, name, zip_file=None):
        return dict(FunctionName=name, Runtime="provided.al2023", Handler="bootstrap", Role=ROLE, Timeout=10,
                    Code={"ZipFile": zip_file or self.probe_zip})

    def create_node(self, name, **settings):
        return self.create(name, zip_of({"index.js": NODE}), Runtime="nodejs8.10", Handler="index.handler", **settings)

    def invoke(self, name, event=None, **arguments):
        """The response, with `payload` read out of it."""
        if event is not None:
            arguments["Payload"] = json.dumps(event)
        answer = self.client.invoke(FunctionName=name, **arguments)
        answer["payload"] = answer["Payload"].read()
        return answer

    def raw(self, method, path, headers=None, body=b""):
        """As no SDK would ask: the path goes out as it is."""
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.path)
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        answer.content = answer.read()
        connection.close()
        return answer

    def clear(self):
        for page in self.client.get_paginator("list_functions").paginate():
            for function in page["Functions"]:
                self.client.delete_function(FunctionName=function["FunctionName"])

    @contextlib.contextmanager
    def refused(self, code, status, message):
        """Of exactly this class, code, status and message (one that ends in `…` is a beginning)."""
        wanted = getattr(self.exceptions, code) if code in modelled(self.client) else ClientError
        try:
            yield
        except ClientError as error:
            told = error.response["Error"]
            equal((type(error).__name__, told["Code"]), (wanted.__name__, code))
            equal(error.response["ResponseMetadata"]["HTTPStatusCode"], status)
            same_text(told["Message"], message)
            self.error = error
        else:
            raise AssertionError(f"{code} was expected, and it worked")


def modelled(client):
    return {shape.name for shape in client.meta.service_model.error_shapes}


def zip_of(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            # Without a time of its own an entry gets this moment's, and the same files another digest two seconds later.
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text)
    return buffer.getvalue()


def sha256(data):
    return b64encode(hashlib.sha256(data).digest()).decode()


def equal(seen, wanted):
    assert seen == wanted, f"{seen!r}, not {wanted!r}"


def same_text(seen, wanted):
    if wanted.endswith("…"):
        assert seen.startswith(wanted[:-1]), f"{seen!r}, not {wanted!r}"
    else:
        equal(seen, wanted)


def insist(refusal, call):
    """Calls until it is not refused so."""
    while True:
        try:
            return call()
        except refusal:
            time.sleep(0.01)  # the pace of asking


def run(modules, kiln):
    for function in _all:
        module = function.__module__
        if module not in modules:
            continue
        name, begin = f"{module}.{function.__name__}", time.monotonic()
        try:
            kiln.clear()
            function(kiln)
            print(f"ok {name} ({time.monotonic() - begin:.1f} s)", flush=True)
        except Exception as error:
            frames = traceback.extract_tb(sys.exc_info()[2])
            lines = ", ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in frames[1:4])
            print(f"FAILED {name} at {lines}: {type(error).__name__}: {error}", flush=True)
    kiln.clear()
