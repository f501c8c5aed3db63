"""What functions share, and what they do not: layers and reserved concurrency."""

import json
import threading
import time
import urllib.parse

from checks import ARN, check, equal, insist, sha256, zip_of

LAYER = ARN.replace(":function", ":layer")


def publish(kiln, name, text, **settings):
    return kiln.client.publish_layer_version(
        LayerName=name, Content={"ZipFile": zip_of({"who.txt": text, f"{name}.txt": name})}, **settings)


def unpublish_all(kiln):
    for page in kiln.client.get_paginator("list_layers").paginate():
        for layer in page["Layers"]:
            for version in kiln.client.list_layer_versions(LayerName=layer["LayerName"])["LayerVersions"]:
                kiln.client.delete_layer_version(LayerName=layer["LayerName"], VersionNumber=version["Version"])


def read(kiln, name, path):
    return json.loads(kiln.invoke(name, {"do": "read", "path": path})["payload"])


@check
def a_layer_is_published_found_and_downloaded(kiln):
    unpublish_all(kiln)
    settings = dict(Description="d", LicenseInfo="MIT", CompatibleRuntimes=["python3.13", "nodejs22.x"],
                    CompatibleArchitectures=["x86_64"])
    made = publish(kiln, "found", "x", **settings)
    equal(made["ResponseMetadata"]["HTTPStatusCode"], 201)
    equal({name: made[name] for name in settings}, settings)
    number = made["Version"]
    equal((made["LayerArn"], made["LayerVersionArn"]), (f"{LAYER}:found", f"{LAYER}:found:{number}"))
    zipped = zip_of({"who.txt": "x", "found.txt": "found"})
    content = made["Content"]
    equal((content["CodeSha256"], content["CodeSize"]), (sha256(zipped), len(zipped)))
    path = urllib.parse.urlparse(content["Location"]).path
    equal(kiln.raw("GET", path).content, zipped)
    for same in (kiln.client.get_layer_version(LayerName="found", VersionNumber=number),
                 kiln.client.get_layer_version(LayerName=made["LayerArn"], VersionNumber=number),
                 kiln.client.get_layer_version_by_arn(Arn=made["LayerVersionArn"])):
        equal(same["ResponseMetadata"]["HTTPStatusCode"], 200)
        equal({**same, "ResponseMetadata": None}, {**made, "ResponseMetadata": None})


@check
def no_number_of_a_layer_comes_twice_and_lists_have_pages(kiln):
    unpublish_all(kiln)
    first = publish(kiln, "counted", "1")["Version"]
    equal([publish(kiln, "counted", "2")["Version"], publish(kiln, "counted", "3")["Version"]], [first + 1, first + 2])
    for _ in range(2):
        gone = kiln.client.delete_layer_version(LayerName="counted", VersionNumber=first + 2)
        equal(gone["ResponseMetadata"]["HTTPStatusCode"], 204)
    equal(publish(kiln, "counted", "4", CompatibleRuntimes=["nodejs8.10"])["Version"], first + 3)
    publish(kiln, "other", "1")
    pages = kiln.client.get_paginator("list_layer_versions").paginate(LayerName="counted", PaginationConfig={"PageSize": 2})
    equal([[one["Version"] for one in page["LayerVersions"]] for page in pages], [[first + 3, first + 1], [first]])
    pages = kiln.client.get_paginator("list_layers").paginate(PaginationConfig={"PageSize": 1})
    equal([layer["LayerName"] for page in pages for layer in page["Layers"]], ["counted", "other"])
    listed = kiln.client.list_layers(CompatibleRuntime="nodejs8.10")["Layers"]
    equal([layer["LatestMatchingVersion"]["Version"] for layer in listed], [first + 3])


@check
def a_function_sees_its_layers_in_order_and_keeps_a_deleted_one(kiln):
    unpublish_all(kiln)
    a, b = publish(kiln, "a", "a"), publish(kiln, "b", "b")
    arns = [a["LayerVersionArn"], b["LayerVersionArn"]]
    made = kiln.create("f", Layers=arns)
    shown = [{"Arn": one["LayerVersionArn"], "CodeSize": one["Content"]["CodeSize"]} for one in (a, b)]
    equal(made["Layers"], shown)
    equal((read(kiln, "f", "/opt/who.txt"), read(kiln, "f", "/opt/a.txt")), ("b", "a"))
    kiln.client.update_function_configuration(FunctionName="f", Layers=arns[::-1])
    kiln.client.get_waiter("function_updated_v2").wait(FunctionName="f")
    equal(read(kiln, "f", "/opt/who.txt"), "a")
    unpublish_all(kiln)
    kiln.client.update_function_configuration(FunctionName="f", MemorySize=256)
    equal(read(kiln, "f", "/opt/who.txt"), "a")
    equal(kiln.client.get_function_configuration(FunctionName="f")["Layers"], shown[::-1])
    kiln.client.update_function_configuration(FunctionName="f", Layers=[])
    assert "Layers" not in kiln.client.get_function_configuration(FunctionName="f")


@check
def layers_that_cannot_be_are_refused(kiln):
    unpublish_all(kiln)
    arns = [publish(kiln, name, "x")["LayerVersionArn"] for name in "abcdef"]
    again = publish(kiln, "a", "y")["LayerVersionArn"]
    for layers, message in [
        (arns, "Cannot reference more than 5 layers."),
        ([f"{LAYER}:none:1"], f"Layer version {LAYER}:none:1 does not exist."),
        ([arns[0], again], "Two different versions of the same layer are not allowed to be referenced in the same function. "
                           f"{arns[0]} and {again} are versions of the same layer."),
        ([arns[0].replace("us-east-1", "eu-west-1")],
         "Layers are not in the same region as the function. Layers are expected to be in region us-east-1."),
    ]:
        with kiln.refused("InvalidParameterValueException", 400, message):
            kiln.client.create_function(**kiln.settings("f"), Layers=layers)
    with kiln.refused("ResourceNotFoundException", 404, "The resource you requested does not exist."):
        kiln.client.get_layer_version(LayerName="a", VersionNumber=4711)
    with kiln.refused("InvalidParameterValueException", 400, "Layer Version Cannot be less than 1"):
        kiln.client.delete_layer_version(LayerName="a", VersionNumber=0)
    with kiln.refused("InvalidParameterValueException", 400,
                      "Could not unzip uploaded file. Please check your file, then try to upload again."):
        kiln.client.publish_layer_version(LayerName="a", Content={"ZipFile": b"no zip"})
    with kiln.refused("ValidationException", 400, "1 validation error detected: Value '[vax]' at 'compatibleArchitectures' …"):
        publish(kiln, "a", "z", CompatibleArchitectures=["vax"])


@check
def a_reserve_is_set_shown_and_removed(kiln):
    kiln.create("f")
    client = kiln.client
    assert "ReservedConcurrentExecutions" not in client.get_function_concurrency(FunctionName="f")
    assert "Concurrency" not in client.get_function(FunctionName="f")
    unreserved = client.get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"]
    before = client.get_function_configuration(FunctionName="f")["RevisionId"]
    equal(client.put_function_concurrency(FunctionName=f"{ARN}:f", ReservedConcurrentExecutions=7)["ReservedConcurrentExecutions"], 7)
    equal(client.get_function_concurrency(FunctionName="f")["ReservedConcurrentExecutions"], 7)
    shown = client.get_function(FunctionName="f")
    equal((shown["Concurrency"], shown["Configuration"]["RevisionId"]), ({"ReservedConcurrentExecutions": 7}, before))
    equal(client.get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"], unreserved - 7)
    equal(client.delete_function_concurrency(FunctionName="f")["ResponseMetadata"]["HTTPStatusCode"], 204)
    assert "Concurrency" not in client.get_function(FunctionName="f")
    with kiln.refused("InvalidParameterValueException", 400,
                      "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution "
                      "below its minimum value of [100]."):
        client.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=unreserved - 99)
    with kiln.refused("InvalidParameterValueException", 400,
                      "This operation is permitted on Lambda functions only. Aliases and versions do not support this "
                      "operation. Please specify either a function name or an unqualified function ARN."):
        client.put_function_concurrency(FunctionName="f:$LATEST", ReservedConcurrentExecutions=1)
    with kiln.refused("ResourceNotFoundException", 404, f"Function not found: {ARN}:none"):
        client.put_function_concurrency(FunctionName="none", ReservedConcurrentExecutions=1)


@check
def who_comes_beyond_the_reserve_is_throttled(kiln):
    kiln.create("f", Timeout=30)
    kiln.client.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=1)
    for _ in range(5):
        kiln.invoke("f", {})
    # The other one may come first, and this one be refused: then it comes again.
    running = threading.Thread(
        target=insist, args=(kiln.exceptions.TooManyRequestsException, lambda: kiln.invoke("f", {"sleep": 2000})))
    running.start()
    refused = None
    while running.is_alive() and refused is None:
        try:
            kiln.client.invoke(FunctionName="f", InvocationType="RequestResponse", Payload=b"{}")
        except kiln.exceptions.TooManyRequestsException as error:
            refused = error.response
        time.sleep(0.01)  # the pace of asking
    running.join()
    assert refused, "nobody was refused"
    equal((refused["Reason"], refused["Type"]), ("ReservedFunctionConcurrentInvocationLimitExceeded", "User"))
    metadata = refused["ResponseMetadata"]
    equal((refused["Error"]["Message"], metadata["HTTPStatusCode"], metadata["HTTPHeaders"]["retry-after"]),
          ("Rate Exceeded.", 429, "1"))
    kiln.client.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=0)
    try:
        kiln.client.invoke(FunctionName="f", Payload=b"{}")
        raise AssertionError("a function that is switched off has run")
    except kiln.exceptions.TooManyRequestsException:
        pass
