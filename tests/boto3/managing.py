"""Functions are made, shown, listed, changed and deleted."""

import io
import os
import socket
import threading
import time
import urllib.parse
from datetime import datetime, timezone

from botocore.handlers import add_expect_header

from checks import ARN, ROLE, check, equal, insist, sha256, zip_of

STATES = ("State", "StateReason", "StateReasonCode", "LastUpdateStatus", "LastUpdateStatusReason", "LastUpdateStatusReasonCode")


def states(configuration):
    return {member: configuration[member] for member in STATES if member in configuration}


@check
def creating_answers_pending_and_every_waiter_sees_it_active(kiln):
    made = kiln.client.create_function(**kiln.settings("f"), Description="what it is for", Tags={"team": "a"},
                                       Environment={"Variables": {"VARIABLE": "ü"}})
    equal(made["ResponseMetadata"]["HTTPStatusCode"], 201)
    equal(states(made), {"State": "Pending", "StateReason": "The function is being created.", "StateReasonCode": "Creating"})
    for waiter in ("function_exists", "function_active", "function_active_v2", "function_updated", "function_updated_v2"):
        kiln.client.get_waiter(waiter).wait(FunctionName="f", WaiterConfig={"Delay": 0.1, "MaxAttempts": 20})
    shown = kiln.client.get_function(FunctionName="f")
    equal(states(shown["Configuration"]), {"State": "Active", "LastUpdateStatus": "Successful"})
    assert shown["Configuration"]["RevisionId"] != made["RevisionId"], "the change of state is a change"
    equal((shown["Tags"], shown["Code"]["RepositoryType"]), ({"team": "a"}, "S3"))


@check
def a_configuration_has_lambdas_members_and_no_other(kiln):
    kiln.create("f", Environment={"Variables": {"VARIABLE": "v"}})
    shown = kiln.client.get_function_configuration(FunctionName="f")
    shown.pop("ResponseMetadata")
    modified = datetime.strptime(shown.pop("LastModified"), "%Y-%m-%dT%H:%M:%S.%f%z")
    assert abs((datetime.now(timezone.utc) - modified).total_seconds()) < 60, modified
    equal(len(shown.pop("RevisionId")), 36)
    runtime = shown.pop("RuntimeVersionConfig")["RuntimeVersionArn"]
    assert runtime.startswith("arn:aws:lambda:us-east-1::runtime:"), runtime
    equal(shown, {
        "FunctionName": "f", "FunctionArn": f"{ARN}:f", "Runtime": "provided.al2023", "Role": ROLE, "Handler": "bootstrap",
        "CodeSize": len(kiln.probe_zip), "CodeSha256": sha256(kiln.probe_zip), "Description": "", "Timeout": 10,
        "MemorySize": 128, "Version": "$LATEST", "Environment": {"Variables": {"VARIABLE": "v"}},
        "TracingConfig": {"Mode": "PassThrough"}, "State": "Active", "LastUpdateStatus": "Successful", "PackageType": "Zip",
        "Architectures": ["x86_64"], "EphemeralStorage": {"Size": 512},
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": "/aws/lambda/f"},
    })


@check
def new_code_is_in_progress_then_successful_and_runs(kiln):
    kiln.create_node("f")
    before = kiln.client.get_function_configuration(FunctionName="f")
    zip_file = zip_of({"index.js": "exports.handler = async () => 'new';"})
    answer = kiln.client.update_function_code(FunctionName="f", ZipFile=zip_file)
    equal(states(answer), {"State": "Active", "LastUpdateStatus": "InProgress",
                           "LastUpdateStatusReason": "The function is being created.", "LastUpdateStatusReasonCode": "Creating"})
    for waiter in ("function_updated_v2", "function_updated"):
        kiln.client.get_waiter(waiter).wait(FunctionName="f", WaiterConfig={"Delay": 0.1})
    after = kiln.client.get_function_configuration(FunctionName="f")
    equal((after["CodeSha256"], after["CodeSize"], after["Handler"]), (sha256(zip_file), len(zip_file), "index.handler"))
    equal(len({before["RevisionId"], answer["RevisionId"], after["RevisionId"]}), 3)
    assert after["LastModified"] >= before["LastModified"]
    equal(kiln.invoke("f", {})["payload"], b'"new"')


@check
def a_dry_run_of_new_code_opens_it_and_changes_nothing(kiln):
    kiln.create("f")
    before = kiln.client.get_function_configuration(FunctionName="f")
    zip_file = zip_of({"bootstrap": "x"})
    answer = kiln.client.update_function_code(FunctionName="f", ZipFile=zip_file, DryRun=True)
    equal(answer["ResponseMetadata"]["HTTPStatusCode"], 200)
    text = "Could not unzip uploaded file. Please check your file, then try to upload again."
    with kiln.refused("InvalidParameterValueException", 400, text):
        kiln.client.update_function_code(FunctionName="f", ZipFile=b"no zip", DryRun=True)
    after = kiln.client.get_function_configuration(FunctionName="f")
    equal((after["RevisionId"], after["CodeSha256"]), (before["RevisionId"], before["CodeSha256"]))


@check
def a_new_configuration_replaces_what_was_given_and_leaves_the_rest(kiln):
    kiln.create_node("f", Environment={"Variables": {"VARIABLE": "old"}}, Tags={"team": "a"}, Description="old")
    given = dict(MemorySize=192, Timeout=7, Description="new", Environment={"Variables": {"VARIABLE": "new"}},
                 Role="arn:aws:iam::000000000000:role/service-role/other")
    answer = kiln.client.update_function_configuration(FunctionName="f", **given)
    equal(answer["LastUpdateStatus"], "InProgress")
    kiln.client.get_waiter("function_updated_v2").wait(FunctionName="f", WaiterConfig={"Delay": 0.1})
    after = kiln.client.get_function(FunctionName="f")
    equal({member: after["Configuration"][member] for member in given}, given)
    equal((after["Configuration"]["Handler"], after["Configuration"]["Runtime"]), ("index.handler", "nodejs8.10"))
    equal(after["Tags"], {"team": "a"})
    seen = kiln.invoke("f", {})["payload"]
    assert b'"variable":"new"' in seen and b'"memory":"192"' in seen, seen
    kiln.client.update_function_configuration(FunctionName="f", Environment={})
    assert "Environment" not in kiln.client.get_function_configuration(FunctionName="f")
    assert b'"variable"' not in kiln.invoke("f", {})["payload"]
    kiln.client.update_function_configuration(FunctionName="f", Handler="index.other")
    equal(kiln.client.get_function_configuration(FunctionName="f")["Handler"], "index.other")


@check
def a_stale_revision_changes_nothing(kiln):
    kiln.create("f")
    revision = kiln.client.get_function_configuration(FunctionName="f")["RevisionId"]
    kiln.client.update_function_configuration(FunctionName="f", Description="one", RevisionId=revision)
    text = ("The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve the "
            "latest Revision Id")
    with kiln.refused("PreconditionFailedException", 412, text):
        kiln.client.update_function_configuration(FunctionName="f", Description="two", RevisionId=revision)
    with kiln.refused("PreconditionFailedException", 412, text):
        kiln.client.update_function_code(FunctionName="f", ZipFile=kiln.probe_zip, RevisionId=revision)
    shown = kiln.client.get_function_configuration(FunctionName="f")
    equal(shown["Description"], "one")
    kiln.client.update_function_code(FunctionName="f", ZipFile=kiln.probe_zip, RevisionId=shown["RevisionId"])


@check
def a_name_is_given_once(kiln):
    kiln.create("f")
    with kiln.refused("ResourceConflictException", 409, "Function already exist: f"):
        kiln.client.create_function(**kiln.settings("f"))
    with kiln.refused("ResourceConflictException", 409, "Function already exist: f"):
        kiln.client.create_function(**{**kiln.settings("f"), "FunctionName": f"{ARN}:f"})


@check
def of_two_changes_at_once_the_second_is_told_to_wait(kiln):
    kiln.create("f")
    # Large enough to be in progress for a while: what does not shrink takes long to hash, unpack and write.
    large = zip_of({"bootstrap": "x", "data": os.urandom(30 << 20)})
    done = []
    # Whoever begins first refuses the other one: this one comes again until it is not refused.
    conflict = kiln.exceptions.ResourceConflictException
    upload = threading.Thread(
        target=insist, args=(conflict, lambda: done.append(kiln.client.update_function_code(FunctionName="f", ZipFile=large))))
    upload.start()
    text = f"The operation cannot be performed at this time. An update is in progress for resource: {ARN}:f"
    refused = 0
    while upload.is_alive() and not refused:
        try:
            kiln.client.update_function_configuration(FunctionName="f", Timeout=9)
        except conflict as error:
            equal((error.response["Error"]["Message"], error.response["ResponseMetadata"]["HTTPStatusCode"]), (text, 409))
            refused += 1
        time.sleep(0.002)  # the pace of asking
    upload.join()
    equal((refused, len(done)), (1, 1))
    kiln.client.update_function_configuration(FunctionName="f", Timeout=8)


@check
def a_deleted_function_is_gone_for_every_operation_and_its_name_is_free(kiln):
    kiln.create("f")
    equal(kiln.client.delete_function(FunctionName="f")["ResponseMetadata"]["HTTPStatusCode"], 204)
    for operation, more in [("get_function", {}), ("get_function_configuration", {}), ("delete_function", {}),
                            ("list_versions_by_function", {}), ("get_policy", {}), ("get_function_code_signing_config", {}),
                            ("update_function_code", {"ZipFile": kiln.probe_zip}), ("update_function_configuration", {})]:
        with kiln.refused("ResourceNotFoundException", 404, f"Function not found: {ARN}:f"):
            getattr(kiln.client, operation)(FunctionName="f", **more)
    with kiln.refused("ResourceNotFoundException", 404, f"Function not found: {ARN}:f:$LATEST"):
        kiln.client.invoke(FunctionName="f")
    kiln.create("f")
    with kiln.refused("InvalidParameterValueException", 400,
                      "$LATEST version cannot be deleted without deleting the function."):
        kiln.client.delete_function(FunctionName="f", Qualifier="$LATEST")
    with kiln.refused("ResourceNotFoundException", 404, f"Function not found: {ARN}:f:7"):
        kiln.client.delete_function(FunctionName="f", Qualifier="7")


@check
def one_hundred_and_twenty_functions_are_three_pages(kiln):
    names = [f"list-{number:03}" for number in range(120)]
    zip_file = zip_of({"bootstrap": "x"})
    for name in names:
        kiln.client.create_function(**kiln.settings(name, zip_file))
    pages = list(kiln.client.get_paginator("list_functions").paginate())
    equal([len(page["Functions"]) for page in pages], [50, 50, 20])
    equal([function["FunctionName"] for page in pages for function in page["Functions"]], names)
    equal(["NextMarker" in page for page in pages], [True, True, False])
    listed = pages[2]["Functions"][0]
    assert not states(listed) and "RuntimeVersionConfig" not in listed, listed
    equal((listed["FunctionArn"], listed["CodeSha256"]), (f"{ARN}:list-100", sha256(zip_file)))
    small = list(kiln.client.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 33}))
    equal([len(page["Functions"]) for page in small], [33, 33, 33, 21])
    # A page that ends with the last function is the last page.
    exact = list(kiln.client.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 40}))
    equal([len(page["Functions"]) for page in exact], [40, 40, 40])
    first = kiln.client.get_paginator("list_functions").paginate(PaginationConfig={"MaxItems": 60}).build_full_result()
    rest = kiln.client.get_paginator("list_functions").paginate(PaginationConfig={"StartingToken": first["NextToken"]})
    equal(len(first["Functions"]) + sum(len(page["Functions"]) for page in rest), 120)
    # Functions that come and go meanwhile move nobody else to another page.
    marker = kiln.client.list_functions(MaxItems=2)["NextMarker"]
    kiln.client.delete_function(FunctionName="list-001")
    equal(kiln.client.list_functions(MaxItems=1, Marker=marker)["Functions"][0]["FunctionName"], "list-002")


@check
def the_location_leads_to_the_very_zip(kiln):
    zip_file = zip_of({"index.js": "exports.handler = async () => 1;"})
    kiln.create("f", zip_file, Runtime="nodejs8.10", Handler="index.handler")
    shown = kiln.client.get_function(FunctionName="f")
    location = urllib.parse.urlsplit(shown["Code"]["Location"])
    equal((location.scheme, location.netloc), ("http", "localhost"))
    answer = kiln.raw("GET", location.path)
    equal((answer.status, answer.headers["Content-Type"]), (200, "application/zip"))
    equal((sha256(answer.content), len(answer.content)), (shown["Configuration"]["CodeSha256"], shown["Configuration"]["CodeSize"]))
    equal(answer.content, zip_file)
    kiln.client.update_function_code(FunctionName="f", ZipFile=kiln.probe_zip)
    newer = urllib.parse.urlsplit(kiln.client.get_function(FunctionName="f")["Code"]["Location"])
    equal(sha256(kiln.raw("GET", newer.path).content), sha256(kiln.probe_zip))
    equal(kiln.raw("GET", location.path).status, 404)


@check
def tags_come_and_go(kiln):
    arn = kiln.create("f", Tags={"team": "a"})["FunctionArn"]
    before = kiln.client.get_function_configuration(FunctionName="f")
    kiln.invoke("f", {"do": "global"})
    equal(kiln.client.list_tags(Resource=arn)["Tags"], {"team": "a"})
    kiln.client.tag_resource(Resource=arn, Tags={"team": "b", "a b/ü": "c=d"})
    equal(kiln.client.list_tags(Resource=arn)["Tags"], {"team": "b", "a b/ü": "c=d"})
    kiln.client.untag_resource(Resource=arn, TagKeys=["team", "nobody"])
    equal(kiln.client.get_function(FunctionName="f")["Tags"], {"a b/ü": "c=d"})
    kiln.client.untag_resource(Resource=arn, TagKeys=["a b/ü"])
    assert "Tags" not in kiln.client.get_function(FunctionName="f")
    after = kiln.client.get_function_configuration(FunctionName="f")
    assert after["RevisionId"] != before["RevisionId"]
    assert b'"invocations":2' in kiln.invoke("f", {"do": "global"})["payload"], "the warm environment goes on"


@check
def tools_find_nothing_beside_a_function(kiln):
    kiln.create("f")
    versions = kiln.client.list_versions_by_function(FunctionName="f")
    equal([(version["Version"], version["FunctionArn"]) for version in versions["Versions"]], [("$LATEST", f"{ARN}:f:$LATEST")])
    assert not states(versions["Versions"][0])
    equal(len(list(kiln.client.get_paginator("list_versions_by_function").paginate(FunctionName="f"))), 1)
    equal(kiln.client.get_function_code_signing_config(FunctionName="f")["FunctionName"], "f")
    with kiln.refused("ResourceNotFoundException", 404, "The resource you requested does not exist."):
        kiln.client.get_policy(FunctionName="f")


@check
def the_account_counts_functions_and_their_code(kiln):
    before = kiln.client.get_account_settings()
    limits = before["AccountLimit"]
    equal((limits["CodeSizeUnzipped"], limits["CodeSizeZipped"], limits["TotalCodeSize"]), (262144000, 52428800, 80530636800))
    equal((limits["ConcurrentExecutions"], limits["UnreservedConcurrentExecutions"]), (1000, 1000))
    equal(before["AccountUsage"], {"TotalCodeSize": 0, "FunctionCount": 0})
    kiln.create("f")
    kiln.create("g")
    equal(kiln.client.get_account_settings()["AccountUsage"], {"TotalCodeSize": 2 * len(kiln.probe_zip), "FunctionCount": 2})


@check
def what_tools_send_of_their_own_accord_is_taken(kiln):
    kiln.create("f", Publish=False, PackageType="Zip", Architectures=["x86_64"], Layers=[], FileSystemConfigs=[], KMSKeyArn="",
                VpcConfig={"SubnetIds": [], "SecurityGroupIds": []}, DeadLetterConfig={}, TracingConfig={"Mode": "PassThrough"},
                SnapStart={"ApplyOn": "None"}, EphemeralStorage={"Size": 512}, Tags={}, Environment={"Variables": {}},
                LoggingConfig={"LogFormat": "Text", "LogGroup": "/aws/lambda/f"}, MemorySize=128, Description="")
    kiln.client.update_function_configuration(
        FunctionName="f", Layers=[], FileSystemConfigs=[], KMSKeyArn="", VpcConfig={"SubnetIds": [], "SecurityGroupIds": []},
        DeadLetterConfig={"TargetArn": ""}, TracingConfig={"Mode": "PassThrough"}, SnapStart={"ApplyOn": "None"},
        LoggingConfig={"LogFormat": "Text"}, EphemeralStorage={"Size": 512})
    kiln.client.update_function_code(FunctionName="f", ZipFile=kiln.probe_zip, Publish=False, Architectures=["x86_64"])
    assert kiln.invoke("f", {"do": "echo"})["StatusCode"] == 200


@check
def a_large_zip_comes_after_100_continue(kiln):
    # A file, and what botocore does with one for S3: the body waits for the server's word.
    client = kiln.client
    large = zip_of({"bootstrap": "x", "data": os.urandom(37 << 20)})
    kiln.create("f", large)
    equal(client.get_function_configuration(FunctionName="f")["CodeSize"], len(large))
    kiln.create("echo")
    client.meta.events.register("before-call.lambda.Invoke", add_expect_header, unique_id="expect")
    try:
        payload = b'"' + b"x" * (5 << 20) + b'"'
        answer = client.invoke(FunctionName="echo", Payload=io.BytesIO(payload))
        equal(answer["Payload"].read(), payload)
        # Who is refused is told at once, and sends nothing.
        with kiln.refused("ResourceNotFoundException", 404, f"Function not found: {ARN}:nope:$LATEST"):
            client.invoke(FunctionName="nope", Payload=io.BytesIO(payload))
    finally:
        client.meta.events.unregister("before-call.lambda.Invoke", unique_id="expect")


@check
def a_body_is_waited_for_where_it_is_wanted_and_only_there(kiln):
    # As the AWS CLI and curl do with large bodies, byte by byte: nothing of the body goes out before the server's word.
    kiln.create("f")
    for name, status, more in [("f", b"HTTP/1.1 100 Continue", b"HTTP/1.1 200 OK"), ("nope", b"HTTP/1.1 404 Not Found", None)]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(kiln.path)
            connection.sendall(f"POST /2015-03-31/functions/{name}/invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
                               "13\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n".encode())
            answer = connection.makefile("rb")
            equal(answer.readline().strip(), status)
            if more:
                equal(answer.readline(), b"\r\n")
                connection.sendall(b'{"do":"echo"}')
                equal(answer.readline().strip(), more)
                assert answer.read().endswith(b'{"do":"echo"}')
            else:
                assert b"100 Continue" not in answer.read()
